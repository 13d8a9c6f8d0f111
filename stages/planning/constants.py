"""What the stages take that run no model, in yardsticks (`yardstick.taken` on the same machine) and in bytes.

Taken from CPU times on two real tables (the sample and squad_dev: 143 thousand and 2.1 million candidates). A table
differs in more than is counted here, so these are rough; `prep plan --compare` shows how rough.
"""

M = 1e-6

TEXT = 400 * M
"""Yardsticks to hash a text, look it up and store its vector."""
SEARCH, SEARCHED = 1.8, 5 * M
"""To begin a search; to write down a candidate."""
BM25_CHARACTER, BM25_PRODUCT = 0.6 * M, 0.06 * M
"""To index a character of a document (of ASCII; others take longer); to score a document for a query."""
BEGIN, FLAG, ANSWER, ESTIMATE, OWNER = 2.0, 18 * M, 6 * M, 45 * M, 1.5 * M
"""Evidence: to begin; to look at a candidate; more where its question has an answer to look for, where it is estimated,
and then for each question that its document is a positive of."""
MASK, COMPOSE, LINE = 19 * M, 4.4 * M, 32 * M
"""A candidate, and a text that is written."""
EVALUATE = 12.0
"""For the metrics and the bootstrap."""

START = 15.0
"""Seconds to load a model with its libraries, on a machine that is not here."""
UNSURE = 0.03
"""The share of candidates that a teacher is asked about; it hangs on the table, and is known after the estimate."""
DISK = 2e8
"""Bytes a second that are written, synced and hashed."""
CHECKPOINT = 12
"""Bytes a weight in a checkpoint: the weight and AdamW's two moments."""

CANDIDATE_BYTES, EVIDENCE_BYTES, VERDICT_BYTES = 9, 75, 65
"""Bytes a candidate in the Parquet files."""
HASHED = 200
"""Bytes of memory a text: its hash, its place in the index of the vectors, and what sorting them takes."""
KEPT = 64
"""Bytes of memory a candidate while it is searched."""
EVIDENCE_MEMORY, MASK_MEMORY, COMPOSE_MEMORY = 500, 180, 110
"""Bytes of memory a candidate; evidence holds no more than 200,000 at once."""
INDEX_CHARACTER = 4
"""Bytes of memory a character of a BM25 index."""
