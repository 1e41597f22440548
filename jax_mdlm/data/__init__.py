"""Text to tokens on the host.

`rows` opens a source: files (`files` finds them, `readers` parses them, `forms` says what a row
means), `pronunciations`, `dialogues` or `catalogue`. `chat` renders its examples, `tokenizer` turns
text into ids, `table` holds all token rows of a split. `order` says which rows a step owns and on
which canvas (`buckets`), `choices` what their epoch draws for them; `assemble` writes them,
`pipeline` hands them out. Nothing is imported here: a command that only needs a tokenizer does not
pay for TFDS and grain.
"""
