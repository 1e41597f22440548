"""The published settings, against the lines that they were read from; their names, in lm-eval."""

import pytest

from jax_mdlm.config import SampleConfig
from jax_mdlm.evaluation.harness import tasks as harness
from jax_mdlm.evaluation.harness.presets import PRESETS, Preset


def test_base_has_the_arguments_of_the_script():
    """`eval_llada_lm_eval.sh`: task, num_fewshot, cfg, mc_num; then task, gen_length."""
    likelihoods = """
        gpqa_main_n_shot 5 0.5 128
        truthfulqa_mc2 0 2.0 128
        arc_challenge 0 0.5 128
        hellaswag 0 0.5 128
        winogrande 5 0.0 128
        piqa 0 0.5 128
        mmlu 5 0.0 1
        cmmlu 5 0.0 1
        ceval-valid 5 0.0 1
    """
    base = PRESETS["base"]
    for line in likelihoods.split("\n")[1:-1]:
        task, shots, guidance, samples = line.split()
        assert base[task] == Preset(int(shots), guidance=float(guidance), samples=int(samples))
    for task in ("bbh", "gsm8k", "minerva_math", "humaneval", "mbpp"):
        assert base[task] == Preset(None, length=1024)
    assert len(base) == 14


def test_instruct_has_the_columns_of_the_table():
    """`EVAL.md`: gen_length, block_length, logits_eos_inf, confidence_eos_eot_inf."""
    table = {
        "instruct": """
            mmlu_generative 3 3 False False
            mmlu_pro 256 256 False False
            arc_challenge_chat 512 512 False False
            gsm8k 512 512 False True
            minerva_math 512 512 False True
            gpqa_diamond_generative_n_shot 64 64 False True
            humaneval_instruct 512 512 True False
            mbpp_instruct 256 256 False True
        """,
        "instruct-blocks": """
            gsm8k 256 8 False False
            minerva_math 512 64 False False
        """,
        "llada-1.5": """
            gsm8k 256 16 False True
            minerva_math 1024 128 False True
            gpqa_diamond_generative_n_shot 256 16 False False
            humaneval_instruct 512 32 False True
            mbpp_instruct 512 32 False True
            ifeval 256 16 False True
        """,
    }
    for preset, lines in table.items():
        for line in lines.split("\n")[1:-1]:
            task, length, block, suppress, defer = line.split()
            assert PRESETS[preset][task].chat
            fields = PRESETS[preset][task].sample_fields({})
            found = (fields["length"], fields["block_length"], fields["steps"])
            assert found == (int(length), int(block), int(length))
            assert (str(fields["suppress_eos"]), str(fields["defer_eos"])) == (suppress, defer)


def test_all_fields_exist():
    for presets in PRESETS.values():
        for preset in presets.values():
            SampleConfig(**preset.sample_fields({}))


def test_what_was_set_by_hand_stays_and_leads():
    whole, blocks = Preset(0, length=512), Preset(0, length=256, block_length=8)
    own = {"length": "64", "temperature": "0.5"}
    fields = whole.sample_fields(own)
    assert not own.keys() & fields.keys()
    assert (fields["block_length"], fields["steps"]) == ("64", "64")
    fields = blocks.sample_fields(own)
    assert (fields["block_length"], fields["steps"]) == (8, "64")
    assert "steps" not in whole.sample_fields({"steps": "32"})


@pytest.mark.slow
def test_lm_eval_knows_the_tasks():
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    names = sorted({name for presets in PRESETS.values() for name in presets})
    manager = harness.open_tasks([*names, "mmlu_anatomy"], [])
    for presets in PRESETS.values():
        for name, preset in presets.items():
            entries = map(manager.task_index.get, harness.task_members(manager, name))
            kinds = {((entry and entry.cfg) or {}).get("output_type") for entry in entries} - {None}
            generates = {"generate_until"} if preset.length else {"multiple_choice"}
            assert kinds == generates, name
    base = PRESETS["base"]
    assert harness.find_preset(manager, base, "mmlu_anatomy") == base["mmlu"]
    assert harness.find_preset(manager, base, "minerva_math_algebra") == base["minerva_math"]
    assert harness.find_preset(manager, base, "mmlu_pro") is None
    code = {name for name in names if harness.runs_code(manager, name)}
    assert code == {"humaneval", "humaneval_instruct", "mbpp", "mbpp_instruct"}
