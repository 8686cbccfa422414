import sys
src=open("/work/main/benchmarks/peer_server.py").read()
src=src.replace("    app = FastAPI()\n","    app = FastAPI()\n    import threading\n    lock = threading.Lock()\n",1)
src=src.replace("        vector = model.encode([body.query], normalize_embeddings=True)\n","        with lock:\n            vector = model.encode([body.query], normalize_embeddings=True)\n")
exec(compile(src,"peer","exec"))
