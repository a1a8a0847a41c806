"""What TPU chips and GPUs can do, from the vendors' pages, and the topologies built of them."""

import math
import re
from dataclasses import dataclass

from rml.errors import UserError, unknown

GIB = 2**30
PAGES = "https://docs.cloud.google.com/tpu/docs/"
NVIDIA = "https://www.nvidia.com/en-us/data-center/"


@dataclass(frozen=True)
class Chip:
    """Figures of one chip, each from `source` unless its comment says otherwise.

    Attributes:
      flops: Peak bf16 FLOP/s.
      hbm: HBM bytes.
      hbm_bandwidth: HBM bytes/s.
      ici: Bytes/s that a chip sends over all its links to other chips of its slice.
      ports: Links to other chips.
      dcn: Bytes/s that a chip's share of the data centre network carries, None where not published.
      host_chips: Chips of a host.
      dimensions: Number of dimensions of the torus that chips form.
      accelerator: Prefix of the accelerator type that `gcloud` takes, and what its number counts;
        None where the Cloud TPU API does not offer the chip.
      runtime: Version of the software on its virtual machines (`runtimes` page).
      options: Further arguments with which one device of the compiler is one chip.
      source: Page of the figures.
      float32: Peak FLOP/s of products of float32 by precision, "default" and "highest"; where
        there are none they are made of bfloat16's, see `tpu.work.passes`.
      target: Description of a GPU that its compiler is given; empty for TPUs.
    """

    flops: float
    hbm: float
    hbm_bandwidth: float
    ici: float
    ports: int
    dcn: float | None
    host_chips: int
    dimensions: int
    accelerator: tuple[str, str] | None
    runtime: str | None
    options: tuple[tuple[str, str], ...]
    source: str
    float32: tuple[tuple[str, float], ...] = ()
    target: str = ""

    @property
    def network(self) -> str:
        """Name of the links between chips of a slice, or GPUs of a host."""
        return "NVLink" if self.target else "ICI"


def gpu(
    name: str, *, flops: float, tf32: float, float32: float, hbm: float, hbm_bandwidth: float,
    nvlink: float, page: str, about: str,
) -> Chip:  # fmt: skip
    """A GPU on the boards that hold up to eight of them.

    Args:
      name: Name that drivers give it.
      flops: Peak bf16 FLOP/s of dense products.
      tf32: The same in TF32, which products of float32 are made in by default.
      float32: The same in float32, outside of the matrix units.
      hbm: Bytes of memory.
      hbm_bandwidth: Bytes/s of it.
      nvlink: Bytes/s over all links, in both directions together.
      page: Name of the vendor's page.
      about: Further figures of the compiler's description: capability, processors, their shared
        memory and that of a block, units of float32, cache, clock.

    Returns:
      The GPU.
    """
    limits = (
        "threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 "
        "threads_per_core_limit: 2048 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 "
        "block_dim_limit_z: 65535 registers_per_core_limit: 65536 registers_per_block_limit: 65536"
    )
    memory = f"memory_bandwidth: {int(hbm_bandwidth)} device_memory_size: {int(hbm)}"
    return Chip(
        flops=flops,
        hbm=hbm,
        hbm_bandwidth=hbm_bandwidth,
        ici=nvlink / 2,
        ports=1,
        dcn=None,
        host_chips=8,
        dimensions=1,
        accelerator=None,
        runtime=None,
        options=(),
        source=NVIDIA + page,
        float32=(("default", tf32), ("high", tf32), ("highest", float32)),
        target=f"gpu_device_info {{ {limits} {memory} {about} }} platform_name: 'CUDA' "
        "dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 9 } "
        f"device_description_str: '{name}'",
    )


HOPPER = (
    "cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 "
    "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 "
    "l2_cache_size: 52428800 clock_rate_ghz: 1.98"
)

# The GPUs' pages give matrix products with sparsity, twice what dense ones reach.
# Two pages write GB for memory, and mean GiB: of v5e's 16 the compiler offers 15.75 GiB.
# The pages give the links' bandwidth in both directions together; `ici` is half of it. That this is
# the right half to take: v5e's page gives 51.2 TB/s of all-reduce for 256 chips, 200 GB/s a chip.
CHIPS = {
    "v4": Chip(
        flops=275e12,
        hbm=32 * GIB,
        hbm_bandwidth=1200e9,
        ici=1.1e15 / 4096,  # all-reduce bandwidth of a pod over its chips; no figure for a chip
        ports=6,
        dcn=None,
        host_chips=4,
        dimensions=3,
        accelerator=("v4", "cores"),
        runtime="tpu-ubuntu2204-base",
        options=(("chip_config_name", "megacore"),),
        source=PAGES + "v4",
    ),
    "v5e": Chip(
        flops=197e12,
        hbm=16 * GIB,
        hbm_bandwidth=819e9,
        ici=400e9 / 2,
        ports=4,
        dcn=6.4e12 / 8 / 256,  # the pod's network over its chips
        host_chips=8,
        dimensions=2,
        accelerator=("v5litepod", "chips"),
        runtime="v2-alpha-tpuv5-lite",
        options=(),
        source=PAGES + "v5e",
    ),
    "v5p": Chip(
        flops=459e12,
        hbm=95 * GIB,
        hbm_bandwidth=2765e9,
        ici=1200e9 / 2,
        ports=6,
        dcn=50e9 / 8,
        host_chips=4,
        dimensions=3,
        accelerator=("v5p", "cores"),
        runtime="v2-alpha-tpuv5",
        options=(),
        source=PAGES + "v5p",
    ),
    "v6e": Chip(
        flops=918e12,
        hbm=32 * GIB,
        hbm_bandwidth=1638e9,
        ici=800e9 / 2,
        ports=4,
        dcn=100e9 / 8,
        host_chips=8,
        dimensions=2,
        accelerator=("v6e", "chips"),
        runtime="v2-alpha-tpuv6e",
        options=(),
        source=PAGES + "v6e",
    ),
    "tpu7x": Chip(
        flops=2307e12,
        hbm=192 * GIB,
        hbm_bandwidth=7380e9,
        ici=1200e9 / 2,
        ports=6,
        dcn=100e9 / 8,
        host_chips=4,
        dimensions=3,
        accelerator=None,  # Google Kubernetes Engine only
        runtime=None,
        options=(),
        source=PAGES + "tpu7x",
    ),
    "a100": gpu(
        "NVIDIA A100-SXM4-80GB",
        flops=312e12,
        tf32=156e12,
        float32=19.5e12,
        hbm=80 * GIB,
        hbm_bandwidth=2039e9,
        nvlink=600e9,
        page="a100/",
        about="cuda_compute_capability { major: 8 } core_count: 108 fpus_per_core: 64 "
        "shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 "
        "l2_cache_size: 41943040 clock_rate_ghz: 1.41",
    ),
    "h100": gpu(
        "NVIDIA H100 80GB HBM3",
        flops=989e12,
        tf32=494e12,
        float32=67e12,
        hbm=80 * GIB,
        hbm_bandwidth=3350e9,
        nvlink=900e9,
        page="h100/",
        about=HOPPER,
    ),
    "h200": gpu(
        "NVIDIA H200",
        flops=989e12,
        tf32=494e12,
        float32=67e12,
        hbm=141e9,
        hbm_bandwidth=4800e9,
        nvlink=900e9,
        page="h200/",
        about=HOPPER,
    ),
}

SLICES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((1,), (2,), (4,), (8,)),  # GPUs of a host
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: ((1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4)),  # larger ones are made of cubes of 4x4x4
}
"""Shapes that are offered, by number of dimensions, from the pages of v5e and v6e, v4 and v5p."""


def parse_topology(name: str) -> tuple[str, tuple[int, ...]]:
    """The chip and the shape that a name such as "v5e:16x16" says.

    Args:
      name: Chip, colon, chips along each dimension of the torus.

    Returns:
      Key of `CHIPS` and shape.

    Raises:
      UserError: An unknown chip, or a shape that is not offered.
    """
    kind, _, text = name.partition(":")
    if kind not in CHIPS:
        raise unknown("chip", kind, CHIPS)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise UserError(f"topology {name!r}: expected {example(kind)}, chips along each dimension")
    shape = tuple(int(size) for size in text.split("x"))
    if len(shape) != CHIPS[kind].dimensions:
        raise UserError(
            f"topology {name!r} has {len(shape)} dimensions, {kind} has {CHIPS[kind].dimensions}: "
            f"expected for example {example(kind)}"
        )
    if not exists(shape):
        offered = ", ".join(f"{kind}:{'x'.join(map(str, one))}" for one in SLICES[len(shape)])
        cubes = " or multiples of 4" if len(shape) == 3 else ""
        raise UserError(f"topology {name!r} does not exist, expected one of {offered}{cubes}")
    return kind, shape


def exists(shape: tuple[int, ...]) -> bool:
    """Whether chips are offered in this shape, its dimensions in any order."""
    whole = len(shape) == 3 and all(size % 4 == 0 for size in shape)
    return whole or tuple(sorted(shape)) in SLICES[len(shape)]


def example(kind: str) -> str:
    """A topology of a chip."""
    dimensions = CHIPS[kind].dimensions
    return f"{kind}:" + ("8" if dimensions == 1 else "x".join("4" * dimensions))


def accelerator_type(name: str) -> str:
    """The accelerator type of a topology, such as "v5litepod-256" of "v5e:16x16".

    Args:
      name: Name of a topology, see `parse_topology`.

    Returns:
      What `gcloud --accelerator-type` takes. v4 and v5p are named by their cores, two a chip.

    Raises:
      UserError: As `parse_topology`, or a chip that the Cloud TPU API does not offer.
    """
    kind, shape = parse_topology(name)
    accelerator = CHIPS[kind].accelerator
    if CHIPS[kind].target:
        raise UserError(f"{kind} is a GPU, expected a TPU's topology such as {example('v5e')}")
    if accelerator is None:
        raise UserError(f"{kind} is offered by Google Kubernetes Engine only, not as a TPU VM")
    prefix, counted = accelerator
    return f"{prefix}-{math.prod(shape) * (2 if counted == 'cores' else 1)}"
