"""GPUs: what they hold, and how fast they multiply, read, and speak to each other.

The H200's rates are measured, hot: after three seconds at its power limit it multiplies
at 685 TFLOP/s, where the data sheet says 989 and the first milliseconds give 803. Plans
are made with what lasts. Other cards are data sheets times the shares of their data
sheet that the H200 reaches: a guess, and marked as one.
"""

from dataclasses import dataclass, replace

GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """One card, and what an hour of it costs."""

    name: str
    memory: float  # bytes that PyTorch finds
    flops: float  # operations a second: products in bfloat16, for seconds on end
    bandwidth: float  # bytes a second that a large copy reads and writes
    link: float  # bytes a second that it receives from the others of its machine
    price: float  # dollars an hour: an assumption, put your own in its place
    source: str


H200 = GPU(
    "H200 SXM",
    memory=139.8 * GIB,
    flops=685e12,
    bandwidth=4.30e12,
    link=250e9,
    price=3.5,
    source="measured: 8192³ products for 3 s, an 8 GiB copy, NCCL all-gather",
)

# What the H200 reaches of its data sheet: 989 TFLOP/s, 4.8 TB/s, 450 GB/s each way.
FLOPS_SHARE = H200.flops / 989e12
BANDWIDTH_SHARE = H200.bandwidth / 4.8e12
LINK_SHARE = H200.link / 450e9


def from_data_sheet(
    name: str,
    memory: float,
    flops: float,
    bandwidth: float,
    link: float,
    price: float,
    source: str,
) -> GPU:
    """A card that nobody here has measured.

    Args:
        name: of the card.
        memory: GiB that PyTorch finds.
        flops: the data sheet's, dense bfloat16 with sums in float32, a second.
        bandwidth: of its memory, bytes a second.
        link: to one other GPU, one way, bytes a second.
        price: dollars an hour.
        source: of the numbers.
    """
    return GPU(
        name,
        memory * GIB,
        flops * FLOPS_SHARE,
        bandwidth * BANDWIDTH_SHARE,
        link * LINK_SHARE,
        price,
        f"{source}, times the H200's shares",
    )


GPUS = {
    "h200": H200,
    "h100": from_data_sheet(
        "H100 SXM 80G", 79.1, 989e12, 3.35e12, 450e9, 2.5, "data sheet of the H100 SXM"
    ),
    "a100-80g": from_data_sheet(
        "A100 SXM 80G", 79.1, 312e12, 2.039e12, 300e9, 1.8, "data sheet of the A100 SXM"
    ),
    "24g": from_data_sheet(
        "24 GB card",
        23.6,
        165e12,
        1.008e12,
        32e9,
        0.4,
        "data sheet of the GeForce RTX 4090, PCIe 4.0",
    ),
    "8g": from_data_sheet(
        "8 GB card",
        7.8,
        40.6e12,
        0.448e12,
        32e9,
        0.1,
        "data sheet of the GeForce RTX 3070, PCIe 4.0",
    ),
}


def get_gpu(name: str, price: float | None = None) -> GPU:
    """The card of that name, at another price an hour if one is given.

    Raises:
        ValueError: there is none, or the price is below 0.
    """
    if name not in GPUS:
        raise ValueError(f"gpu must be one of {', '.join(GPUS)} (got {name!r})")
    if price is None:
        return GPUS[name]
    if price < 0:
        raise ValueError(f"a price is 0 or more dollars an hour (got {price})")
    return replace(GPUS[name], price=price)


def own_gpu(
    like: GPU,
    memory: float | None = None,
    tflops: float | None = None,
    bandwidth: float | None = None,
    link: float | None = None,
) -> GPU:
    """That card, with those numbers in place of its own that are given.

    They are taken as they are: what the card reaches, not its data sheet.

    Args:
        memory: GiB that PyTorch finds.
        tflops: TFLOP/s of products in bfloat16, for seconds on end.
        bandwidth: TB/s that a large copy reads and writes.
        link: GB/s that it receives from the others of its machine.

    >>> own_gpu(H200, memory=39.4).name
    'your card, else as H200 SXM'
    """
    given = {
        "memory": None if memory is None else memory * GIB,
        "flops": None if tflops is None else tflops * 1e12,
        "bandwidth": None if bandwidth is None else bandwidth * 1e12,
        "link": None if link is None else link * 1e9,
    }
    yours = {name: number for name, number in given.items() if number is not None}
    if not yours:
        return like
    name, source = "your card", f"yours: {', '.join(yours)}"
    if len(yours) < len(given):
        name += f", else as {like.name}"
        source += f"; the rest {like.name}, {like.source}"
    return replace(like, name=name, source=source, **yours)
