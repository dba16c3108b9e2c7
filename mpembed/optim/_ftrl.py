"""FTRL-proximal."""

from mpembed._arguments.scalars import FLOAT_MAX, finite
from mpembed.optim._base import Optimizer, StatePrecision, accumulator_start, positive


class Ftrl(Optimizer):
    """FTRL-proximal; L1 regularisation gives exact zeros.

    With ``P(n) = n^-lr_power``: ``s = (P(n + g^2) - P(n)) / lr; z += g - s * w; n += g^2``;
    w is 0 where ``|z| <= l1``, else ``(sign(z) * l1 - z) / ((beta + P(n)) / lr + l2)``. z and n are
    one value an element.

    Parameters
    ----------
    lr : float
        Learning rate, finite and > 0; may be changed at any time through the attribute.
    lr_power : float
        -1 <= lr_power <= 0.
    l1, l2 : float
        Strength of the regularisations, finite and >= 0.
    beta : float
        Added to P(n); finite and >= 0.
    initial_accumulator_value : float
        Start value of every n.
    weight_decay, weight_decay_mode, state_precision
        As in `SGD`; the states are ``"z"`` and ``"n"``. Decoupled decay shrinks z too.

    Notes
    -----
    A row's weights follow from its z. A weight whose z is 0 is taken as it is: z becomes what that
    weight follows from, so that initial and converted rows are trained on. For zeros from the start
    use ``TableConfig(init="zeros")``. `set_rows` leaves z: a row that FTRL has trained goes back to
    its z at the next update.
    """

    __slots__ = ()
    _kind = "ftrl"
    squares = ("n",)

    def __init__(
        self,
        lr: float = 1e-2,
        *,
        lr_power: float = -0.5,
        l1: float = 0.0,
        l2: float = 0.0,
        beta: float = 1.0,
        initial_accumulator_value: float = 0.0,
        weight_decay: float = 0.0,
        weight_decay_mode: str = "none",
        state_precision: StatePrecision = "fp32",
    ) -> None:
        start = accumulator_start(initial_accumulator_value)
        super().__init__(
            lr,
            weight_decay=weight_decay,
            weight_decay_mode=weight_decay_mode,
            state_precision=state_precision,
            own={
                "lr_power": finite("lr_power", lr_power, -1.0, 0.0),
                "l1": finite("l1", l1, 0.0, FLOAT_MAX),
                "l2": finite("l2", l2, 0.0, FLOAT_MAX),
                "beta": finite("beta", beta, 0.0, FLOAT_MAX),
                "initial_accumulator_value": start,
            },
            start={"n": start},
        )

    def _checked_lr(self, lr: float) -> float:
        return positive("lr", lr)  # the weights are divided by it

    @property
    def lr_power(self) -> float:
        """How fast the rates of elements fall."""
        return float(self._settings["lr_power"])

    @property
    def l1(self) -> float:
        """Strength of the L1 regularisation."""
        return float(self._settings["l1"])

    @property
    def l2(self) -> float:
        """Strength of the L2 regularisation."""
        return float(self._settings["l2"])

    @property
    def beta(self) -> float:
        """Added to P(n)."""
        return float(self._settings["beta"])

    @property
    def initial_accumulator_value(self) -> float:
        """Start value of n."""
        return float(self._settings["initial_accumulator_value"])
