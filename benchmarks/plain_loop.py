"""The peer of ``embedding.py``: a plain loop over sentence-transformers in float32 and a flat FAISS index.

    python benchmarks/plain_loop.py CATALOGUE.parquet MODEL FOLDER

Reads the column ``title``, encodes 1,024 texts at a time (sentence-transformers sorts them by length and cuts them
into batches of its default size), adds them to the index, and writes index.faiss to FOLDER. vectors.npy is written
for the comparison, after the clock has stopped. The last line of its output is a JSON object with the seconds.
"""

import json
import sys
import time
from pathlib import Path

CHUNK = 1_024
DIM = 384


def main() -> None:
    start_s = time.perf_counter()
    import faiss
    import numpy as np
    import pyarrow.parquet as pq
    from sentence_transformers import SentenceTransformer

    catalogue, model_folder, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    texts = pq.read_table(catalogue, columns=["title"])["title"].to_pylist()
    model = SentenceTransformer(model_folder, device="cpu")
    loaded_s = time.perf_counter()
    index = faiss.IndexFlatIP(DIM)
    parts = []
    for start in range(0, len(texts), CHUNK):
        vectors = model.encode(texts[start : start + CHUNK], normalize_embeddings=True)
        index.add(vectors)
        parts.append(vectors)
    faiss.write_index(index, str(folder / "index.faiss"))
    end_s = time.perf_counter()
    np.save(folder / "vectors.npy", np.concatenate(parts), allow_pickle=False)
    print(json.dumps({"load_s": round(loaded_s - start_s, 3), "loop_s": round(end_s - loaded_s, 3)}))


if __name__ == "__main__":
    main()
