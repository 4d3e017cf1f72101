"""From raw rows to tokens and targets: chats, pairs, instructions and plain text.

A row goes through these modules in this order: `raw` (files → blocks of rows), `formats` (a row → a chat, a pair
or a text), `template` (rendered), `turns` (where assistant text stands in it), `encode` (token ids and labels),
`shards` (written in order, resumable). `tokenization` is what all of them share; `job` is the command.
"""
