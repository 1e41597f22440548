"""Forms of HLO that only the TPU compiler prints, in a few lines each, and their parser."""

import pytest

from jax_mdlm.planning.cost import count
from jax_mdlm.planning.hlo import Array, parse_hlo

HEAD = """HloModule jit_step, is_scheduled=true

FileNames
1 "layers.py"

FunctionNames
1 "block"
2 "attention"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

"""


def entry(*lines: str, before: str = "") -> str:
    body = "\n".join("  " + line for line in lines)
    return f"{HEAD}{before}\nENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}\n\n"


def test_shapes_memory_and_names() -> None:
    module = parse_hlo(
        entry(
            "%p = f32[4]{0:T(128)} parameter(0)",
            "%pair = (bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/u32[]{:S(2)}) custom-call(%p), "
            'custom_call_target="AllocateBuffer"',
            "ROOT %n = f32[4]{0:T(128)} negate(%p), "
            'metadata={op_name="jit(step)/neg" stack_frame_id=2}',
        )
    )
    main = module.computations[module.entry]
    assert [one.opcode for one in main.instructions.values()] == [
        "parameter",
        "custom-call",
        "negate",
    ]
    assert main.instructions["pair"].arrays == (Array("bf16", (2, 3), 1), Array("u32", (), 2))
    assert (main.root.name, main.root.op_name) == ("n", "jit(step)/neg")
    assert module.functions_of(main.root) == {"block", "attention"}
    assert module.functions_of(main.instructions["pair"]) == frozenset()
    assert main.instructions["pair"].hbm_bytes == 0
    assert main.root.hbm_bytes == 16


def test_text_without_a_program_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold an entry computation"):
        parse_hlo("HloModule nothing\n")


@pytest.mark.parametrize(
    ("left", "right", "result", "rest", "flops"),
    [
        # A batch of 32 as a dilated spatial axis: one product per element, not 32.
        (
            "bf16[4,32,8]",
            "bf16[32,16,8]",
            "f32[32,4,16]",
            "window={size=32 stride=31 lhs_dilate=32}, dim_labels=b0f_0oi->0bf",
            2 * 32 * 4 * 16 * 8,
        ),
        # The inner axis of a product in two parts, both summed.
        (
            "bf16[4,2,8]",
            "bf16[2,8,16]",
            "bf16[4,16,1]",
            "window={size=2}, dim_labels=b0f_0io->bf0",
            2 * 4 * 16 * 2 * 8,
        ),
        # Two results by padding: each window meets one element.
        (
            "bf16[4,8,1]",
            "bf16[8,2,16]",
            "bf16[4,2,16]",
            "window={size=2 pad=1_1 rhs_reversal=1}, dim_labels=bf0_i0o->b0f",
            2 * 4 * 2 * 16 * 8,
        ),
        ("bf16[8,4]", "bf16[8,16]", "f32[4,16]", "dim_labels=fb_io->bf", 2 * 4 * 16 * 8),
    ],
)
def test_products_as_convolutions(
    left: str, right: str, result: str, rest: str, flops: int
) -> None:
    text = entry(
        f"%a = {left}{{0}} parameter(0)",
        f"%b = {right}{{0}} parameter(1)",
        f"ROOT %c = {result}{{0}} convolution(%a, %b), {rest}, metadata={{stack_frame_id=2}}",
    )
    cost = count(text)
    assert (cost.flops, cost.attention_flops, cost.passes) == (flops, flops, flops)
    exact = text.replace("bf16[", "f32[").replace(
        ", metadata", ", operand_precision={highest,highest}, metadata"
    )
    cost = count(exact.replace("stack_frame_id=2", "stack_frame_id=1"))
    assert (cost.flops, cost.attention_flops, cost.passes) == (flops, 0, 6 * flops)


def test_vmem_is_free_and_copies_count_on_the_side_of_hbm() -> None:
    cost = count(
        entry(
            "%p = f32[8,100]{1,0} parameter(0)",
            "%s = (f32[8,100]{1,0:S(1)}, f32[8,100]{1,0}, u32[]{:S(2)}) copy-start(%p)",
            "%d = f32[8,100]{1,0:S(1)} copy-done(%s)",
            "%part = ((f32[8,100]{1,0}), f32[1,100]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%p)",
            "%e = f32[8,100]{1,0:S(1)} exponential(%d)",
            "ROOT %n = f32[8,100]{1,0} negate(%e)",
        )
    )
    assert cost.hbm_bytes == 3200 + 400 + 3200  # copied in, a slice copied in, the result


def test_a_fusion_touches_what_it_slices() -> None:
    fused = (
        "%inside (a: f32[64,100], b: f32[100], i: s32[]) -> f32[64,100] {\n"
        "  %a = f32[64,100]{1,0} parameter(0)\n"
        "  %b = f32[100]{0} parameter(1)\n"
        "  %i = s32[] parameter(2)\n"
        "  %z = s32[] constant(0)\n"
        "  %row = f32[1,100]{1,0} dynamic-slice(%a, %i, %z), dynamic_slice_sizes={1,100}\n"
        "  %v = f32[1,100]{1,0} reshape(%b)\n"
        "  %sum = f32[1,100]{1,0} add(%row, %v)\n"
        "  ROOT %new = f32[64,100]{1,0} dynamic-update-slice(%a, %sum, %i, %z)\n"
        "}\n"
    )
    text = entry(
        "%p = f32[64,100]{1,0} parameter(0)",
        "%q = f32[100]{0} parameter(1)",
        "%i = s32[]{:S(2)} parameter(2)",
        "ROOT %f = f32[64,100]{1,0} fusion(%p, %q, %i), kind=kLoop, calls=%inside",
        before=fused,
    )
    assert count(text).hbm_bytes == 3 * 400  # a row, the vector, a row


def test_layers_that_are_laid_out_anew_are_read_one_at_a_time() -> None:
    """The TPU compiler slices int8 layers behind a fusion that only changes their tiles."""
    fused = (
        "%tiles (a: s8[64,100]) -> s8[64,100] {\n"
        "  %a = s8[64,100]{1,0:T(32,128)(4,1)} parameter(0)\n"
        "  ROOT %c = s8[64,100]{1,0:T(8,128)(4,1)} copy(%a)\n"
        "}\n"
        "%inside (a: s8[64,100], i: s32[]) -> s8[1,100] {\n"
        "  %a = s8[64,100]{1,0:T(32,128)(4,1)} parameter(0)\n"
        "  %t = s8[64,100]{1,0:T(8,128)(4,1)} fusion(%a), kind=kLoop, calls=%tiles\n"
        "  %i = s32[] parameter(1)\n"
        "  %z = s32[] constant(0)\n"
        "  ROOT %row = s8[1,100]{1,0} dynamic-slice(%t, %i, %z), dynamic_slice_sizes={1,100}\n"
        "}\n"
    )
    text = entry(
        "%p = s8[64,100]{1,0:T(32,128)(4,1)} parameter(0)",
        "%i = s32[]{:S(2)} parameter(1)",
        "ROOT %f = s8[1,100]{1,0} fusion(%p, %i), kind=kLoop, calls=%inside",
        before=fused,
    )
    assert count(text).hbm_bytes == 2 * 100


def test_what_a_fusion_hands_on_is_free_and_a_copy_is_not() -> None:
    fused = (
        "%inside (a: f32[100], b: f32[100]) -> (f32[100], f32[100]) {\n"
        "  %a = f32[100]{0} parameter(0)\n"
        "  %b = f32[100]{0} parameter(1)\n"
        "  %c = f32[100]{0} copy(%b)\n"
        "  ROOT %t = (f32[100]{0}, f32[100]{0}) tuple(%a, %c)\n"
        "}\n"
    )
    text = entry(
        "%p = f32[100]{0} parameter(0)",
        "%q = f32[100]{0} parameter(1)",
        "ROOT %f = (f32[100]{0}, f32[100]{0}) fusion(%p, %q), kind=kLoop, calls=%inside",
        before=fused,
    )
    assert count(text).hbm_bytes == 2 * 400


def test_a_collective_spread_over_fusions_happens_once() -> None:
    """It stands in the fusions that start, overlap and end it."""
    config = 'backend_config={"async_collective_fusion_config":{"flag_start":"2"}}'
    gather = "replica_groups=mesh['x'=4] {'x'}, dimensions={0}"

    state = "(bf16[8,16]{1,0}, bf16[32,16]{1,0}, s32[2]{0:S(4)})"

    def fused(name: str, root: str, result: str) -> str:
        return (
            f"%{name} (a: bf16[8,16]) -> bf16[32,16] {{\n"
            "  %a = bf16[8,16]{1,0} parameter(0)\n"
            f"  %g = bf16[32,16]{{1,0}} all-gather(%a), {gather}, {config}\n"
            f'  ROOT %r = {result} custom-call(%g), custom_call_target="{root}"\n'
            "}\n\n"
        )

    text = entry(
        "%p = bf16[8,16]{1,0} parameter(0)",
        f"%s = {state} fusion(%p), kind=kCustom, calls=%begin",
        "%b = bf16[8,16]{1,0} get-tuple-element(%s), index=0",
        "ROOT %d = bf16[32,16]{1,0} fusion(%b), kind=kCustom, calls=%end",
        before=fused("begin", "AsyncCollectiveStart", state)
        + fused("end", "AsyncCollectiveDone", "bf16[32,16]{1,0}"),
    )
    cost = count(text)
    [(one, times)] = cost.collectives.items()
    assert (one.kind, one.bytes, times) == ("all-gather", 8 * 16 * 2, 1)
    assert cost.hbm_bytes == 8 * 16 * 2 + 32 * 16 * 2


def test_what_goes_to_other_slices_is_sent() -> None:
    """Across slices the TPU compiler turns collectives into sends and receives."""
    cost = count(
        entry(
            "%p = f32[4]{0} parameter(0)",
            "%t = token[] after-all()",
            "%s = (f32[4]{0}, u32[], token[]) send(%p, %t), channel_id=1, is_host_transfer=true",
            "%sd = token[] send-done(%s), channel_id=1, is_host_transfer=true",
            "%r = (f32[4]{0}, u32[], token[]) recv(%sd), channel_id=2, is_host_transfer=true",
            "%rd = (f32[4]{0}, token[]) recv-done(%r), channel_id=2, is_host_transfer=true",
            "ROOT %n = f32[4]{0} get-tuple-element(%rd), index=0",
        )
    )
    [(one, times)] = cost.collectives.items()
    assert (one.kind, one.bytes, times) == ("send", 16, 1)
    assert cost.hbm_bytes == 16 + 16


KERNEL = """%o = (f32[2,128,128]{2,1,0}, bf16[2,4,64,32]{3,2,1,0}) custom-call(%m, %q, %k, %k), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="jit(step)/splash_mha_PHASE_segmented/pallas_call" stack_frame_id=1}"""


@pytest.mark.parametrize(("phases", "products"), [(("fwd",), 2), (("dkv", "dq"), 7), (("dkv",), 5)])
def test_splash_attention_counts_by_its_shapes(phases: tuple[str, ...], products: int) -> None:
    lines = [
        "%m = s8[1,8,8]{2,1,0} parameter(0)",
        "%q = bf16[2,4,64,32]{3,2,1,0} parameter(1)",
        "%k = bf16[2,2,96,32]{3,2,1,0} parameter(2)",
    ]
    for phase in phases:
        lines.append(KERNEL.replace("PHASE", phase).replace("%o", f"%o_{phase}"))
    lines.append("ROOT %n = bf16[2,4,64,32]{3,2,1,0} negate(%q)")
    cost = count(entry(*lines))
    assert cost.flops == cost.attention_flops == products * 2 * (2 * 4 * 64 * 32) * 96
    assert not cost.doubts


def test_a_kernel_that_says_nothing_is_named() -> None:
    call = (
        '%o = f32[4]{0} custom-call(%p), custom_call_target="tpu_custom_call", '
        'metadata={op_name="jit(step)/my_kernel"}'
    )
    lines = ("%p = f32[4]{0} parameter(0)", call, "ROOT %n = f32[4]{0} negate(%o)")
    assert list(count(entry(*lines)).doubts) == ["FLOPs of kernel my_kernel"]
    told = call + ', backend_config={"custom_call_config":{"cost_estimate":{"flops":"77"}}}'
    cost = count(entry(lines[0], told, lines[2]))
    assert (cost.flops, cost.doubts) == (77, {})
