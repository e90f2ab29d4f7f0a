"""The model of the kernels: what it reads from machine code, and that no prediction has become worse."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest

from pgm_fast.train.run.json_files import read_json

CODE = """
        /*0000*/                   S2R R0, SR_TID.X ;                          /* 0x0 */
        /*0010*/                   LDG.E.128 R4, desc[UR8][R2.64] ;            /* 0x0 */
        /*0020*/                   ISETP.GE.AND P0, PT, R0, R1, PT ;           /* 0x0 */
        /*0030*/               @P0 BRA 0x60 ;                                  /* 0x0 */
        /*0040*/                   FADD R4, R4, R5 ;                           /* 0x0 */
        /*0050*/                   CALL.REL.NOINC 0x100 ;                      /* 0x0 */
        /*0060*/                   MUFU.EX2 R4, R4 ;                           /* 0x0 */
        /*0070*/                   SHFL.DOWN P1, R6, R4, 0x1, 0x1f ;           /* 0x0 */
        /*0080*/                   LDG.E.U16 R7, desc[UR8][R2.64+0x2] ;        /* 0x0 */
        /*0090*/               @P0 BRA 0x80 ;                                  /* 0x0 */
        /*00a0*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ; /* 0x0 */
        /*00b0*/               @P1 BRA 0x60 ;                                  /* 0x0 */
        /*00c0*/                   STG.E.128 desc[UR8][R2.64], R4 ;            /* 0x0 */
        /*00d0*/                   EXIT ;                                      /* 0x0 */
        /*0100*/                   MUFU.RCP R4, R4 ;                           /* 0x0 */
        /*0110*/                   RET.REL.NODEC R4 0x0 ;                      /* 0x0 */
"""


@pytest.fixture
def model(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import kernel_model

    return kernel_model


def test_machine_code_is_counted_by_trips(model):
    code = model.Code(CODE)
    assert [(loop.start, loop.end) for loop in code.loops] == [(0x60, 0xB0), (0x80, 0x90)]
    counts = code.counts([3, 5])
    # 4 before the loops: what is skipped by the guard of a call is not walked; 4 in the outer one, 2 in the inner one
    assert counts.instructions == 4 + 3 * (4 + 5 * 2) + 2
    assert (counts.mufu, counts.shuffles, counts.narrow) == (3, 3, 15)
    assert (counts.loaded, counts.stored) == (32 * 16 + 15 * 32 * 2, 32 * 16)
    # a warp starts a quarter of the product; a multiprocessor does 2048 multiply-adds in a clock
    assert counts.tensor == 3 * 64 * 128 * 16 / 4 / 2048
    assert code.loops[0].counts.instructions == 4 + 5 * 2
    # both operands are read from shared memory
    operands = (64 + 128) * 16 * 2
    assert counts.shared == 4 + 4 + 3 + 15 + 3 * operands / 128 / 4


def test_a_warp_alone_waits_for_memory_and_for_every_trip(model):
    from machine_code import LATENCY

    code = model.Code(CODE)
    code.counts([1, 1])
    once = code.duration()
    code.counts([4, 1])
    # the first load is read by what is in the loop, the second one by nothing
    assert once > LATENCY["LDG"]
    assert code.duration() - once >= 3 * LATENCY["MUFU"]


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "blocks"),
    [(32, 4, 0, 16), (33, 4, 0, 12), (175, 8, 81920, 1), (119, 8, 94208, 2), (64, 8, 120 << 10, 1), (16, 1, 0, 32)],
)
def test_blocks_at_a_time(model, registers, warps, shared, blocks):
    launch = model.Launched("any", "", 1, warps, registers, shared, (), 0)
    assert model.blocks_at_a_time(launch) == blocks


def test_every_kernel_is_in_every_file_of_triton(model, repository):
    files = sorted(model.RESULTS.glob("triton-*.json"))
    assert files
    names = {
        line.removeprefix("def ").partition("(")[0]
        for path in (repository / "kernels").glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("def ") and line.partition("(")[0].endswith("_kernel")
    }
    for path in files:
        assert {x["kernel"] for row in read_json(path)["rows"] for x in row["launches"]} == names, path.name


OPS = ("partition", "partition_dual", "optimizer, adamw-float32")


@pytest.mark.parametrize("op", [*OPS, pytest.param("", marks=pytest.mark.slow, id="every op")])
def test_no_prediction_of_triton_became_worse(model, op):
    pytest.importorskip("triton", reason="triton is not installed (Linux only): pip install triton")
    path = model.file_of(model.toolchain("triton"))
    if not path.exists():
        pytest.skip(f"no {path.name}: python benchmarks/kernel_model.py writes it for the release that is installed")
    rows = list(model.rows_of_triton(op))
    assert rows and not model.regressions(read_json(path)["rows"], rows)


@pytest.mark.slow
def test_no_prediction_of_nvcc_became_worse(model):
    if shutil.which("nvcc") is None or find_spec("triton") is None:
        pytest.skip("nvcc is not on the PATH, or there is no triton, whose cuobjdump is used")
    committed = read_json(model.RESULTS / "nvcc.json")
    if model.toolchain("native") != committed["toolchain"]:
        pytest.skip(f"{model.toolchain('native')} is here, the result file is of {committed['toolchain']}")
    rows = list(model.rows_of_cuda())
    assert rows and not model.regressions(committed["rows"], rows)


def test_what_became_worse_is_named(model):
    row = {"op": "an op", "shape": "1 × 1", "pass": "forward"}
    before = row | {device: {"us": 100.0, "limit": "bandwidth"} for device in model.COPY}
    within = row | {device: {"us": 100.0 * model.WORSE, "limit": "issue"} for device in model.COPY}
    worse = within | {"H200": {"us": 120.0, "limit": "issue"}}
    assert model.regressions([before], [within]) == []
    assert model.regressions([before], [worse]) == [
        "an op, 1 × 1, forward: 120 µs on H200, limited by issue, and was 100"
    ]
    assert model.regressions([], [worse]) == ["an op, 1 × 1, forward: not in the result file"]
