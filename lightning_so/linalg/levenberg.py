"""The rule of Levenberg and Marquardt: damping by how well a damped quadratic model has foretold the loss."""

#: A model that foretells less than this share of the change is damped more, one that foretells more than that, less.
POOR, GOOD = 0.25, 0.75


def adapted(damping: float, ratio: float, factor: float = 1.5) -> float:
    """Change a damping.

        ratio = (f(w + d) - f(w)) / q(d),   q(d) = g'd + d'(B + damping I)d / 2
        ratio < 1/4: damping * factor;   ratio > 3/4: damping / factor

    Of a quadratic loss whose curvature is B the ratio is 1, or above it by what damping takes; the damping shrinks.

    Source: Martens 2010, section 4.1 (factor 3/2); Nocedal and Wright 2006, algorithm 4.1.

    Args:
        damping: What it was.
        ratio: See above; NaN, of a loss that is not finite, counts as a model that is poor.
        factor: By how much.

    Returns:
        What it is now.

    Example:
        >>> adapted(3.0, 1.0), adapted(3.0, -1.0), adapted(3.0, 0.5)
        (2.0, 4.5, 3.0)
    """
    if not ratio >= POOR:
        return damping * factor
    return damping / factor if ratio > GOOD else damping
