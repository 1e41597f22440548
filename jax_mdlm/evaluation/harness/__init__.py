"""lm-evaluation-harness over our own sampler and likelihood (extra `eval`).

`responder` answers texts, `tasks` plugs it into lm-eval and finds, loads and runs tasks,
`presets` has LLaDA's published settings. Importing this imports nothing of lm-eval.
"""
