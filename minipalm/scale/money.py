"""From operations to an invoice."""


def hours_and_money(
    flops: float, gpus: int, rate: float, share: float, price: float
) -> tuple[float, float]:
    """How long some GPUs are busy with a job, and what they cost.

    Args:
        flops: operations of the whole job.
        gpus: that work at the same time, and share it equally.
        rate: operations a second that one GPU could do.
        share: of the rate that it reaches in this job; above 0, at most 1.
        price: dollars for one GPU and one hour.

    Returns:
        hours on the clock, and dollars for all GPUs together.

    Raises:
        ValueError: there is no GPU, or the share is not above 0 and at most 1.

    Example: 7.2e18 operations on 4 GPUs of 1e15 a second, of which they reach a half:
    3600 s, so 1 hour; at 2.5 dollars 10 dollars.
    """
    if gpus < 1 or not 0 < share <= 1:
        raise ValueError(
            "expected 1 GPU or more, and a share above 0 and at most 1 "
            f"(got {gpus} and {share})"
        )
    hours = flops / (gpus * rate * share) / 3600
    return hours, hours * gpus * price
