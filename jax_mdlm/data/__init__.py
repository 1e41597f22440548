"""Text to tokens on the host.

What people bring: `files` finds it, `sources` says which rows of it and how often, `readers` parses
it, `forms` makes conversations of it; `rows` holds those in memory, with the package's own sources
(`pronunciations`, `dialogues`, `numbers`, `catalogue`). `chat` writes a conversation, `tokenizer`
turns text into ids, `encode` does both. `preparing` writes ids to shards, which `prepared` opens,
or `table` holds them; both say by `cut` what stands on a canvas. `order` says which rows a step
owns and on which canvas, `draws` what their epoch draws for them, `batches` puts them together.
Nothing is imported here: a command that only needs a tokenizer does not pay for TFDS and grain.
"""
