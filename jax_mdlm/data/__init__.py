"""Text to tokens on the host.

`rows` opens a source (`jsonl`, `pronunciations`, `dialogues`, `catalogue`), `chat` renders its
examples, `tokenizer` turns text into ids, `table` holds all token rows of a split, `pipeline`
draws batches from the table. Nothing is imported here: a command that only needs a tokenizer does
not pay for TFDS and grain.
"""
