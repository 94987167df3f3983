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


def smoothed(damping: float, ratio: float, growth: float) -> tuple[float, float]:
    """Change a damping as far as the model was good, and faster the more often in a row it was not.

        ratio > 0:  damping * max(1/3, 1 - (2 ratio - 1)^3), growth 2;   else  damping * growth, growth * 2

    Source: Nielsen 1999, "Damping parameter in Marquardt's method", equation 2.4.

    Args:
        damping: What it was.
        ratio: As of `adapted`; NaN is poor.
        growth: 2 at first, then what the last call gave.

    Returns:
        Damping and growth for the next model.

    Example:
        >>> smoothed(3.0, 1.0, 2.0), smoothed(3.0, -1.0, 4.0)
        ((1.0, 2.0), (12.0, 8.0))
    """
    if not ratio > 0:
        return damping * growth, growth * 2
    return damping * max(1 / 3, 1 - (2 * ratio - 1) ** 3), 2.0
