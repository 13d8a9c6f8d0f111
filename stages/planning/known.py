"""What the stages take that run no model, in yardsticks (`yardstick.taken` on the same machine) and in bytes.

Taken from CPU times on four real tables (the sample, covid_faq, stackfaq and medquad: 143 thousand to 3 million
candidates). A table differs in more than is counted here, so these are rough; `prep plan --compare` shows how rough.
"""

M = 1e-6

TEXT = 150 * M
"""Yardsticks to hash a text, look it up and store its vector."""
SEARCH, SEARCHED = 0.8, 2 * M
"""To begin a search; to write down a candidate."""
BM25_CHARACTER, BM25_PRODUCT = 2.6 * M, 0.02 * M
"""To index a character of a document; to score a document for a query."""
FLAG, ESTIMATE, ANSWER, OWNER = 1.0, 30 * M, 11 * M, 10 * M
"""Evidence: to begin; to estimate a candidate; more where its question has an answer to look for, and for each question
that its document is a positive of."""
MASK, COMPOSE, LINE = 17 * M, 4 * M, 20 * M
"""A candidate, and a text that is written."""
EVALUATE = 4.0
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
KEPT = 40
"""Bytes of memory a candidate while it is searched."""
EVIDENCE_MEMORY, MASK_MEMORY, COMPOSE_MEMORY = 500, 180, 110
"""Bytes of memory a candidate; evidence holds no more than 200,000 at once."""
INDEX_CHARACTER = 4
"""Bytes of memory a character of a BM25 index."""
