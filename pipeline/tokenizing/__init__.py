"""From raw rows to tokens and targets: chats, pairs, instructions and plain text.

A row goes through these modules in this order: `rows.formats` (a row becomes a chat, a pair or a text),
`rendering` with `chats.template` and `chats.turns` (it becomes text, of which some characters are trained),
`encoding` (token ids and labels), `workers` (blocks side by side), `shards` and `shard` (written in order, resumable).
`tokenization` is what all of them share; `run` is the command, and `for_packing` the same in front of `pack`.
"""
