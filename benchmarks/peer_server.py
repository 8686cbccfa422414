"""The peer: what a competent engineer writes in a week without Ray. One process, one file.

    python benchmarks/peer_server.py FOLDER MODEL PORT thread-pool|event-loop

FastAPI, sentence-transformers in float32 with its defaults, a flat FAISS index. FOLDER holds vectors.npy and
items.json as ``worlds.py`` writes them. The route comes in the two ways that people write it: ``def``, which FastAPI
runs in its thread pool, and ``async def``, which encodes on the event loop. The second has less to wait for: the
model's threads never meet those of another request.
"""

import json
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field
from sentence_transformers import SentenceTransformer


class Query(BaseModel):
    """The body of a search."""

    query: str = Field(min_length=1, max_length=4_000)
    limit: int = Field(default=10, ge=1, le=500)


def create_app(folder: Path, model_folder: str, on_the_loop: bool) -> FastAPI:
    items: list[dict[str, Any]] = json.loads((folder / "items.json").read_text(encoding="utf-8"))
    vectors = np.load(folder / "vectors.npy", allow_pickle=False)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    model = SentenceTransformer(model_folder, device="cpu")
    app = FastAPI()

    @app.get("/livez")
    async def livez() -> dict[str, bool]:
        return {"alive": True}

    def search(body: Query) -> dict[str, Any]:
        vector = model.encode([body.query], normalize_embeddings=True)
        scores, rows = index.search(vector, body.limit)
        found = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return {"items": [items[row] | {"score": score} for row, score in found if row >= 0]}

    async def search_on_the_loop(body: Query) -> dict[str, Any]:
        return search(body)

    app.post("/search")(search_on_the_loop if on_the_loop else search)
    return app


if __name__ == "__main__":
    app = create_app(Path(sys.argv[1]), sys.argv[2], sys.argv[4] == "event-loop")
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), access_log=False, log_level="warning")
