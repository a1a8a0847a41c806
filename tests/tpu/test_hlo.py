"""What is read off compiled programs equals what is known of them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rml.evaluation.costs import program_flops, transformer_flops, window_pairs
from rml.models import build
from tpu import hlo, shapes, work
from tpu.chips import CHIPS
from tpu.collectives import Collective, collectives, seconds
from tpu.roofline import roofline

PLACES = np.array([(i // 4, i % 4) for i in range(8)])
ONE_SLICE = np.zeros(8, int)


def flops(program):
    return sum(n * work.flops(c, i) for c, i, n in program.executed())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("products", 7 * 2 * 8 * 16 * 16),
        ("nested", 3 * 5 * 2 * 8 * 16 * 16),
        ("chosen", 4 * 2 * 8 * 16 * 16),  # the larger branch
    ],
)
def test_products_count_as_often_as_their_loops_run(texts, name, expected):
    assert flops(hlo.parse(texts[name])) == expected


@pytest.mark.slow
def test_trip_counts_without_xlas_note_of_them(texts):
    text = texts["nested"].replace("known_trip_count", "hidden")
    assert sorted(hlo.parse(text).loops().values()) == [3, 5]
    assert flops(hlo.parse(text)) == 3 * 5 * 2 * 8 * 16 * 16


@pytest.mark.slow
def test_convolution_counts_no_padding(texts):
    program = hlo.parse(texts["convolved"])
    found = [i for _, i, _ in program.executed() if i.opcode == "convolution"]
    assert len(found) == 1
    # Along each dimension 5 places of 3: one place of the first and of the last is padding.
    assert flops(program) == 2 * 2 * 3 * 5 * (3 * 5 - 2) ** 2


def test_all_reduce(texts):
    (one,) = collectives(hlo.parse(texts["summed"]))
    assert (one.kind, one.bytes, one.count) == ("all-reduce", 32 * 4, 1)
    assert one.sent(8) == pytest.approx(2 * 7 / 8 * 128)


def test_all_gather_has_its_groups(texts):
    (one,) = collectives(hlo.parse(texts["gathered"]))
    assert (one.kind, one.bytes) == ("all-gather", 16 * 32 * 4)
    assert sorted(map(sorted, one.groups.tolist())) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert one.sent(4) == 3 * one.bytes


def test_exchanges_in_loops_count_as_often_as_they_run(texts):
    (one,) = collectives(hlo.parse(texts["ring"]))
    assert (one.kind, one.count, one.bytes) == ("collective-permute", 4, 16 * 32 * 4)


def test_slow_network_between_slices(texts):
    chip = CHIPS["v5e"]
    (one,) = collectives(hlo.parse(texts["summed"]))
    network, near = seconds(one, chip, PLACES, ONE_SLICE)
    assert (network, near) == ("ici", pytest.approx(one.sent(8) / chip.ici))
    network, far = seconds(one, chip, PLACES, np.arange(8) // 4)
    # Two slices of four chips: each chip carries a quarter of 2 · (2 - 1) / 2 times the array.
    assert (network, far) == ("dcn", pytest.approx(one.bytes / 4 / chip.dcn))
    (rows,) = collectives(hlo.parse(texts["gathered"]))
    assert seconds(rows, chip, PLACES, np.arange(8) // 4)[0] == "ici"
    # The group lies along one of two dimensions of the torus: half of the links carry it.
    assert seconds(rows, chip, PLACES, ONE_SLICE)[1] == pytest.approx(rows.sent(4) / (chip.ici / 2))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        # In the other slice everybody lacks every chip's array, or the half of it that goes there.
        ("all-gather", 8.0), ("all-to-all", 4.0), ("ragged-all-to-all", 4.0),
        ("collective-permute", 8.0),
        # A chip carries a quarter of its slice's one array, or of the half of it that goes there.
        ("all-reduce", 2.0), ("reduce-scatter", 1.0), ("collective-broadcast", 2.0),
    ],
)  # fmt: skip
def test_bytes_of_a_chip_between_two_slices_of_four(kind, sent):
    one = Collective(kind, 8_000_000_000, None, 1, kind, "f32[2000000000]")
    network, time = seconds(one, CHIPS["v5e"], PLACES, np.arange(8) // 4)
    assert (network, time * CHIPS["v5e"].dcn) == ("dcn", pytest.approx(sent * 1e9))


# Results as XLA types them: most starts give (operands, results, contexts).
PAIR = "f32[4,8]{1,0}, f32[2,8]{1,0}"
STARTS = (
    "HloModule m\n\n"
    "%wrapped (p: f32[4,8]) -> f32[1,8] {\n"
    "  %p = f32[4,8]{1,0} parameter(0)\n"
    "  ROOT %rs = f32[1,8]{1,0} reduce-scatter(%p)\n"
    "}\n\n"
    "ENTRY %main (x: f32[4,8], y: f32[2,8]) -> f32[] {\n"
    "  %x = f32[4,8]{1,0} parameter(0)\n"
    "  %y = f32[2,8]{1,0} parameter(1)\n"
    "  %gather = f32[16,8]{1,0} all-gather(%x)\n"
    "  %gather-a = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%x)\n"
    "  %gathers = (f32[16,8]{1,0}, f32[8,8]{1,0}) all-gather(%x, %y)\n"
    f"  %gathers-a = (({PAIR}), (f32[16,8]{{1,0}}, f32[8,8]{{1,0}})) all-gather-start(%x, %y)\n"
    "  %reduce = f32[4,8]{1,0} all-reduce(%x)\n"
    "  %reduce-a = f32[4,8]{1,0} all-reduce-start(%x)\n"
    f"  %reduces = ({PAIR}) all-reduce(%x, %y)\n"
    f"  %reduces-a = ({PAIR}) all-reduce-start(%x, %y)\n"
    "  %scatter = f32[1,8]{1,0} reduce-scatter(%x)\n"
    "  %scatter-a = ((f32[4,8]{1,0}), f32[1,8]{1,0}, u32[]) reduce-scatter-start(%x)\n"
    "  %permute = f32[4,8]{1,0} collective-permute(%x)\n"
    "  %permute-a = (f32[4,8]{1,0}, f32[4,8]{1,0:S(1)}, u32[], u32[]) "
    "collective-permute-start(%x)\n"
    "  %near = f32[4,8]{1,0:S(1)} copy(%x)\n"
    "  %near-a = (f32[4,8]{1,0:S(1)}, f32[4,8]{1,0}, u32[]) copy-start(%x)\n"
    "  %whole = ((f32[4,8]{1,0}), f32[1,8]{1,0}, u32[]) async-start(%x), calls=%wrapped\n"
    "}\n"
)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("gather", 32 + 128), ("gathers", 32 + 16 + 128 + 64), ("reduce", 32 + 32),
        ("reduces", 32 + 16 + 32 + 16), ("scatter", 32 + 8), ("near", 32),
    ],
)  # fmt: skip
def test_what_is_started_moves_as_much_as_what_is_waited_for(name, numbers):
    program = hlo.parse(STARTS)
    main = program.computations["main"]
    assert work.traffic(program, main, main.by_name[name]) == 4 * numbers
    assert work.traffic(program, main, main.by_name[f"{name}-a"]) == 4 * numbers


def test_of_a_permutation_that_is_started_the_result_has_its_own_memory():
    program = hlo.parse(STARTS)
    main = program.computations["main"]
    assert work.traffic(program, main, main.by_name["permute"]) == 4 * (32 + 32)
    assert work.traffic(program, main, main.by_name["permute-a"]) == 4 * 32


def test_what_a_start_wraps_counts_once():
    program = hlo.parse(STARTS)
    found = {i.name: work.traffic(program, c, i) for c, i, _ in program.outer()}
    assert (found["whole"], found["rs"]) == (0, 4 * (32 + 8))


def test_roofline_adds_up(texts):
    chip = CHIPS["v5p"]
    line = roofline(hlo.parse(texts["products"]), chip, coordinates=PLACES, slices=ONE_SLICE)
    assert line.flops == 7 * 2 * 8 * 16 * 16
    assert line.matrix_seconds == pytest.approx(line.flops / chip.flops)
    # At the least each weight is read once.
    assert line.bytes >= 7 * 16 * 16 * 4
    assert line.memory_seconds == pytest.approx(line.bytes / chip.hbm_bandwidth)
    assert line.links == {"ici": 0.0, "dcn": 0.0}
    assert max(line.matrix_seconds, line.memory_seconds) <= line.local_seconds
    assert line.local_seconds <= line.matrix_seconds + line.memory_seconds
    assert line.bound == "memory"
    assert line.whole == line.memory_seconds <= line.overlapped <= line.serial
    unknown = dataclasses.replace(line, links={"ici": 0.0, "dcn": math.inf})
    assert (unknown.bound, unknown.serial) == ("unknown", math.inf)


# As XLA writes them for GPUs, parts that say nothing of the work left out.
WINDOW = "window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, "
GEMM = (
    ', backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
    '{"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"]},'
    '"precision_config":{"operand_precision":["HIGHEST","HIGHEST"]}}}'
)


def call(name, result, operands, target, before="", after=""):
    target = f'custom_call_target="__{target}"'
    return f"  %{name} = {result} custom-call({operands}), {before}{target}{after}\n"


HALF = "bf16[2,10,4,16]{3,1,2,0}"
KERNELS = (
    "ENTRY %main (x: f32[6,9,9,4]) -> f32[] {\n"
    "  %x = f32[6,9,9,4]{3,2,1,0} parameter(0)\n"
    "  %k = f32[8,3,3,4]{3,2,1,0} parameter(1)\n"
    "  %g = f32[6,4,4,8]{3,2,1,0} parameter(2)\n"
    "  %q = bf16[2,10,4,16]{3,2,1,0} parameter(3)\n"
    "  %s = bf16[2,12,2,16]{3,2,1,0} parameter(4)\n"
    "  %a = f32[20,30]{1,0} parameter(5)\n"
    "  %b = f32[20,50]{1,0} parameter(6)\n"
    "  %t = f32[7,7]{1,0} parameter(7)\n"
    "  %r = f32[7,40]{1,0} parameter(8)\n"
    + call("forward", "(f32[6,4,4,8]{3,2,1,0}, u8[99]{0})", "%x, %k", "cudnn$convForward", WINDOW)
    + call("inputs", "(f32[6,9,9,4]{3,2,1,0}, u8[0]{0})", "%g, %k", "cudnn$convBackwardInput",
           WINDOW)
    + call("filter", "(f32[8,3,3,4]{3,2,1,0}, u8[0]{0})", "%x, %g", "cudnn$convBackwardFilter",
           WINDOW)
    + call("out", f"({HALF}, f32[2,4,10]{{2,1,0}}, u8[0]{{0}})", "%q, %s, %s", "cudnn$fmhaSoftmax")
    + call("back", f"({HALF}, u8[0]{{0}})", "%q, %s, %s", "cudnn$fmhaSoftmaxBackward")
    + call("product", "(f32[30,50]{1,0}, s8[99]{0})", "%a, %b", "cublas$lt$matmul", "", GEMM)
    + call("solved", "(f32[7,40]{0,1}, s8[9]{0})", "%t, %r", "cublas$triangularSolve")
    + call("factor", "(f32[7,7]{0,1}, s32[]{:})", "%t", "x").replace("__x", "cusolver_potrf_ffi")
    + "}\n"
)  # fmt: skip
CONVOLVED = 2 * 6 * (4 * 4) * (3 * 3) * 4 * 8
ATTENDED = 2 * 2 * 4 * 10 * 12 * 16


@pytest.mark.parametrize(
    ("name", "operations", "size"),
    [
        ("forward", CONVOLVED, 4 * (6 * 81 * 4 + 8 * 9 * 4 + 6 * 16 * 8)),
        ("inputs", CONVOLVED, 4 * (6 * 81 * 4 + 8 * 9 * 4 + 6 * 16 * 8)),
        ("filter", CONVOLVED, 4 * (6 * 81 * 4 + 8 * 9 * 4 + 6 * 16 * 8)),
        ("out", 2 * ATTENDED, 2 * (2 * 2 * 640 + 2 * 2 * 12 * 2 * 16) + 4 * 80),
        ("back", 5 * ATTENDED, 2 * (2 * 2 * 640 + 2 * 2 * 12 * 2 * 16)),
        ("solved", 40 * 7 * 7, 4 * (49 + 2 * 280)),
        ("factor", 7**3 / 3, 4 * (49 + 49 + 1)),
        ("product", 2 * 30 * 50 * 20, 4 * (20 * 30 + 20 * 50 + 30 * 50)),
    ],
)
def test_kernels_of_a_gpus_libraries_count_by_their_shapes(name, operations, size):
    """Their scratch space is no traffic."""
    program = hlo.parse(KERNELS)
    main = program.computations["main"]
    assert work.flops(main, main.by_name[name]) == operations
    assert work.traffic(program, main, main.by_name[name]) == size


def test_a_products_time_is_that_of_its_type():
    main = hlo.parse(KERNELS).computations["main"]
    passes = {n: work.passes(main, main.by_name[n], CHIPS["h100"]) for n in ("forward", "out")}
    assert passes == {"forward": pytest.approx(989 / 494), "out": 1}
    assert work.passes(main, main.by_name["product"], CHIPS["h100"]) == pytest.approx(989 / 67)
    assert work.passes(main, main.by_name["product"], CHIPS["v5e"]) == 6


def test_a_gpus_links_are_half_of_what_both_directions_carry(texts):
    (one,) = collectives(hlo.parse(texts["summed"]))
    places = np.arange(8)[:, None]
    network, near = seconds(one, CHIPS["h100"], places, ONE_SLICE)
    assert (network, near) == ("ici", pytest.approx(2 * 7 / 8 * 128 / 450e9))


def test_group_notations():
    head = "%x = f32[8]{0} all-reduce(%y), replica_groups="
    expected = {
        "{{0,2},{1,3}}": [[0, 2], [1, 3]],
        "[2,4]<=[8]": [[0, 1, 2, 3], [4, 5, 6, 7]],
        "[4,2]<=[2,4]T(1,0)": [[0, 4], [1, 5], [2, 6], [3, 7]],
        "mesh['axis_0'=2,'axis_1'=4] {'axis_1'}": [[0, 1, 2, 3], [4, 5, 6, 7]],
        "mesh['axis_0'=2,'axis_1'=4] {'axis_0'}": [[0, 4], [1, 5], [2, 6], [3, 7]],
        "mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}": [
            [0, 4], [1, 5], [2, 6], [3, 7],
        ],
    }  # fmt: skip
    for text, groups in expected.items():
        program = hlo.parse(
            "ENTRY %main (y: f32[8]) -> f32[8] {\n  %y = f32[8]{0} parameter(0)\n"
            f"  {head}{text}, to_apply=%add\n}}\n\n"
            "%add (a: f32[], b: f32[]) -> f32[] {\n  %a = f32[] parameter(0)\n}\n"
        )
        (one,) = collectives(program)
        assert one.groups.tolist() == groups, text


def test_shapes_and_memory_spaces():
    (near, far) = shapes.shapes("(f32[128,3]{1,0:T(8,128)S(1)}, bf16[]{:T(256)})")
    assert (str(near), near.bytes, near.main_memory) == ("f32[128,3]", 1536, False)
    assert (str(far), far.bytes, far.main_memory) == ("bf16[]", 2, True)
    (tiled,) = shapes.shapes("bf16[2,197,197]{1,2,0:T(8,128)(2,1)}")
    assert tiled.padded_bytes == 2 * 200 * 256 * 2


@settings(max_examples=60, derandomize=True)
@given(
    size=st.integers(1, 6), kernel=st.integers(1, 4), stride=st.integers(1, 3),
    low=st.integers(0, 3), high=st.integers(0, 3), holes=st.integers(1, 3),
    spread=st.integers(1, 2),
)  # fmt: skip
@pytest.mark.slow
def test_window_pairs_against_a_convolution_of_ones(size, kernel, stride, low, high, holes, spread):
    padded = np.zeros(low + (size - 1) * holes + 1 + high)
    padded[low : low + size * holes : holes][:size] = 1
    reach = (kernel - 1) * spread + 1
    starts = range(0, len(padded) - reach + 1, stride)
    expected = sum(padded[s : s + reach : spread].sum() for s in starts)
    found = window_pairs(
        size, kernel, len(starts), stride=stride, low=low, holes=holes, spread=spread
    )
    assert found == expected


@pytest.mark.parametrize(("pooling", "tokens"), [("gap", 4), ("cls", 5)])
def test_traced_count_of_a_transformer_is_its_closed_form(pooling, tokens):
    model = build("vit_ti", depth=3, width=48, pooling=pooling, positions="sincos2d")
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    found = program_flops(model.apply, variables, images)
    # The closed form's projection of patches leaves a class token out; "gap" has none.
    patches = 4 * 16 * 16 * 3 * 48 * 2
    blocks = transformer_flops(tokens=tokens, width=48, depth=3)
    assert found == 2 * (blocks + patches)
    if pooling == "cls":
        whole = transformer_flops(tokens=5, width=48, depth=3, patch_values=16 * 16 * 3)
        assert found == 2 * whole


def test_traced_count_of_a_strided_and_dilated_convolution():
    def step(x, w, k):
        y = jax.lax.conv_general_dilated(x, k, (1, 2), "SAME", rhs_dilation=(2, 1))
        return jnp.sum(jax.nn.relu(y.reshape(4, -1) @ w))

    shapes = [(4, 3, 8, 8), (5 * 8 * 4, 6), (5, 3, 3, 3)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    products = 2 * 4 * 160 * 6
    rows = 8 * 3 - 2 * 2  # windows of three places two apart miss two at either end
    columns = 4 * 3 - 1  # stride 2, padded behind
    assert program_flops(step, *args) == products + 2 * 4 * 5 * 3 * rows * columns


def test_traced_count_inside_shard_map_is_that_of_all_devices():
    mesh = jax.sharding.AbstractMesh((4,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("a")
    mapped = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    # Each of four devices has two of the eight rows.
    assert program_flops(mapped, jnp.ones((8, 3))) == 4 * 2 * 2 * 2 * 3


def test_traced_count_takes_the_platforms_branch():
    def product(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)

    assert program_flops(product, jnp.ones((4, 4))) == 2 * 4**3
    assert program_flops(product, jnp.ones((4, 4)), platform="cpu") == 4 * 4**3
