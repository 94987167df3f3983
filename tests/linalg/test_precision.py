"""Products in full precision, whichever of torch's settings says otherwise; afterwards each says what it said."""

import timeit
import warnings

import pytest
import torch

from lightning_so.linalg import precision
from lightning_so.linalg.precision import FullPrecision, Rounded, Uncast, Unrounded, rounded

NEW = hasattr(torch._C, "_get_fp32_precision_getter")
newer = pytest.mark.skipif(not NEW, reason="these settings are there since torch 2.9")
#: All that can be told since then; the second one of each is its operation.
PLACES = [
    *(("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn")),
    *(("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn")),
]


def told(place, setting):
    return lambda: torch._C._set_fp32_precision_setter(*place, setting)


def older(setting):
    return lambda: torch.set_float32_matmul_precision(setting)


def allowed():
    torch.backends.cuda.matmul.allow_tf32 = True


ONES = {"high": [older("high")], "medium": [older("medium")], "allow_tf32": [allowed]}
MORE = {
    "cuda": [told(("cuda", "matmul"), "tf32")],
    "cuda, everything": [told(("cuda", "all"), "tf32")],
    "everything": [told(("generic", "all"), "tf32")],
    "everything, bfloat16": [told(("generic", "all"), "bf16")],
    "everything but cuda": [told(("generic", "all"), "tf32"), told(("cuda", "matmul"), "ieee")],
    "the same thrice": [
        told(("generic", "all"), "tf32"),
        told(("cuda", "all"), "tf32"),
        told(("cuda", "matmul"), "tf32"),
    ],
    "cpu": [told(("mkldnn", "matmul"), "bf16")],
    "older, then newer": [older("medium"), told(("cuda", "matmul"), "ieee")],
    "newer, then older": [told(("generic", "all"), "tf32"), older("high")],
    "newer, then allow_tf32": [told(("mkldnn", "all"), "bf16"), allowed],
}
SETTINGS = {**{k: pytest.param(v, id=k) for k, v in ONES.items()}}
SETTINGS |= {k: pytest.param(v, id=k, marks=newer) for k, v in MORE.items()}
EVERY = pytest.mark.parametrize("settings", SETTINGS.values())


def answer(question):
    try:
        return question()
    except RuntimeError as error:  # of torch, where both interfaces were used and say different things
        return str(error)


def state():
    """What torch says of its settings; and what it would say if what others take over were another."""
    older = [answer(torch.get_float32_matmul_precision), answer(lambda: torch.backends.cuda.matmul.allow_tf32)]
    found = [older, answer(lambda: torch.backends.cudnn.allow_tf32)]
    if NEW:
        get, set_ = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
        found += [get(*place) for place in PLACES]
        for place in PLACES[0], PLACES[1], PLACES[5]:
            before = get(*place)
            for other in ("ieee", "tf32", "none"):
                set_(*place, other)
                found += [get(*place) for place in PLACES]
            set_(*place, before if place == PLACES[0] else "none")
    return found


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    torch.set_float32_matmul_precision("highest")
    if NEW:
        for place in PLACES:
            if place[1] in ("all", "matmul"):
                torch._C._set_fp32_precision_setter(*place, "none")


def plain():
    assert not rounded()
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cuda.matmul.allow_tf32 is False
    if NEW:
        get = torch._C._get_fp32_precision_getter
        assert not {get("cuda", "matmul"), get("mkldnn", "matmul")} & {"tf32", "bf16"}


def raised(how):
    with how(), how():
        plain()
        raise KeyError


@EVERY
@pytest.mark.parametrize("how", [Unrounded, FullPrecision])
def test_nothing_is_rounded_inside_and_the_settings_are_back_outside(settings, how):
    for tell in settings:
        tell()
    expected = state()
    for tell in settings:  # Asking what is taken over has changed it.
        tell()
    assert rounded()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with how():
            plain()
            with how():
                plain()
            plain()
        assert rounded()
        with pytest.raises(KeyError):
            raised(how)
        how()(plain)()
    assert state() == expected


@EVERY
def test_an_accelerator_rounds_inside_and_does_outside_as_it_was_told(settings):
    for tell in settings:
        tell()
    expected = state()
    for tell in settings:
        tell()
    with Rounded():
        assert rounded()
        if NEW:
            assert torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32"
        with FullPrecision():
            plain()
        assert rounded()
    assert state() == expected


def test_an_accelerator_that_is_told_nothing_rounds_inside_alone(monkeypatch):
    for getter in (precision._get, None):
        monkeypatch.setattr(precision, "_get", getter)
        with Rounded():
            assert rounded()
        plain()


@pytest.mark.parametrize("setting", ["high", "medium", "allow_tf32"])
def test_before_torch_2_9_there_is_one_setting(setting, monkeypatch):
    monkeypatch.setattr(precision, "_get", None)
    (tell,) = ONES[setting]
    tell()
    before = torch.get_float32_matmul_precision()
    assert before != "highest"
    with Unrounded():
        plain()
    assert torch.get_float32_matmul_precision() == before
    assert rounded()


def test_where_nothing_is_rounded_nothing_is_told(monkeypatch):
    monkeypatch.setattr(precision, "_set", None)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", None)
    monkeypatch.setattr(torch, "set_autocast_enabled", None)
    with FullPrecision():
        plain()


def test_what_warns_whoever_asks_first_warns_nobody(monkeypatch):
    # As torch 2.9 does: once in a process.
    ask, warned = torch.get_float32_matmul_precision, []

    def warns():
        if not warned:
            warned.append(1)
            warnings.warn("Please use the new API settings", stacklevel=2)
        return ask()

    torch.set_float32_matmul_precision("high")
    precision._read_quietly.cache_clear()
    monkeypatch.setattr(torch, "get_float32_matmul_precision", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with Unrounded():
                pass
    assert warned


def cast():
    return [torch.is_autocast_enabled(kind) for kind in ("cuda", "cpu")]


@pytest.mark.parametrize("how", [Uncast, FullPrecision])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_no_autocast_is_on_inside_and_it_is_again_outside(how, kind):
    a = torch.randn(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no such device
        autocast = torch.autocast(kind, torch.bfloat16)
    with autocast:
        before = cast()
        with how():
            assert cast() == [False, False]
            assert (a @ a).dtype is torch.float32
        assert cast() == before
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16
        with pytest.raises(KeyError):
            raised(how)
        assert cast() == before
        if kind == "cpu":
            assert (a @ a).dtype is torch.bfloat16
    assert cast() == [False, False]


@pytest.mark.parametrize("setting", ["highest", "medium"])
def test_it_costs_microseconds(setting):
    torch.set_float32_matmul_precision(setting)

    def enter():
        with FullPrecision():
            pass

    # 1.2 and 5 of them; a machine at work takes its time.
    assert min(timeit.repeat(enter, number=100, repeat=20)) / 100 < 50e-6
