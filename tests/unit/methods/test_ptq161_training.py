"""Training a block takes the textbook's steps, whoever holds which sequences."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from small_models import build
from torch import Tensor
from torch.func import functional_call

from bitpress.errors import NumericalError
from bitpress.methods import PTQ161Config
from bitpress_workers.methods.ptq161 import PTQ161
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.skeleton import Skeleton
from bitpress_workers.pipeline.activations import Activations
from bitpress_workers.pipeline.block_training import BlockTraining, Surveys, TrainingState, begin, pass_reference
from oracles import ptq161 as oracle
from oracles import textbook

CONFIG = PTQ161Config(epochs=3, salient_bits=3, scale_learning_rate=2e-3, rotation_learning_rate=4e-3)
METHOD = PTQ161(CONFIG)
TOKENS = torch.randint(0, 61, (4, 12), generator=torch.Generator().manual_seed(0))


class Setting:
    """One block of a small model with two streams of some of the sequences; the calibration stream is a bit off."""

    def __init__(self, path: Path, dtype: torch.dtype, sequences: range) -> None:
        self.skeleton = Skeleton(Checkpoint.open(str(path)), "cpu", dtype)
        self.block = self.skeleton.load_block(0)
        self.taps = self.skeleton.taps(0)
        batches = [range(sequence, sequence + 1) for sequence in sequences]
        self.reference, self.calibration = (Activations(self.skeleton, TOKENS, batches) for _ in range(2))
        for sequence in range(len(self.calibration)):
            hidden_1SD = self.calibration.hidden(sequence)
            noise = torch.Generator().manual_seed(sequences.start + sequence)
            hidden_1SD += 0.1 * torch.randn(hidden_1SD.shape, generator=noise, dtype=torch.float64)

    def weights(self) -> dict[str, Tensor]:
        names = [name for tap in self.taps for name in tap.linears]
        return {name: self.block.get_parameter(f"{name}.weight").data for name in names}

    def pass_reference(self) -> Surveys:
        surveys, finite = pass_reference(METHOD, self.block, 0, self.taps, self.reference)
        assert finite
        return surveys

    def training(self, state: TrainingState, method: PTQ161 = METHOD) -> BlockTraining:
        return BlockTraining(method, self.block, 0, "block", state, (self.reference, self.calibration))


@pytest.fixture(scope="module", params=["llama", "opt", "bloom"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(str(request.param))
    build(str(request.param)).save_pretrained(path)
    return path


def trained(path: Path, dtype: torch.dtype, shards: list[range]) -> TrainingState:
    settings = [Setting(path, dtype, sequences) for sequences in shards]
    surveys = [setting.pass_reference() for setting in settings]
    state = begin(METHOD, settings[0].weights(), settings[0].taps, surveys)
    trainings = [setting.training(state) for setting in settings]
    for _ in range(CONFIG.epochs):
        for training in trainings:
            state = training.walk(state)
    return state


def textbook_training(path: Path) -> tuple[dict[str, oracle.Scales], list[float]]:
    setting = Setting(path, torch.float64, range(4))
    inputs = [[stream.hidden(n).clone() for n in range(4)] for stream in (setting.reference, setting.calibration)]
    weights = setting.weights()
    (surveys,) = [setting.pass_reference()]
    linears = {}
    for tap in setting.taps:
        # With grouped queries channels do tie: the first token sees only itself, through every head of a group.
        mask = oracle.mask(torch.stack(surveys[tap.name]).amax(dim=0), CONFIG.salient_percent)
        linears |= {name: oracle.Scales.initial(weights[name], mask) for name in tap.linears}

    def forward(values: Mapping[str, Tensor], hidden_1SD: Tensor) -> Tensor:
        named = {f"{name}.weight": value for name, value in values.items()}
        arguments = setting.skeleton.enter(TOKENS[:1])[1][0]
        output = functional_call(setting.block, named, (hidden_1SD,), arguments)
        return output[0] if setting.skeleton.family.returns_tuple else output

    losses = oracle.train(
        forward,
        linears,
        *inputs,
        epochs=CONFIG.epochs,
        learning_rates=(2e-3, 4e-3, 4e-3),
        bits=3,
        store=textbook.half_scale,
    )
    return linears, losses


def test_the_steps_are_the_textbook_s(model: Path) -> None:
    state = trained(model, torch.float64, [range(4)])
    linears, losses = textbook_training(model)
    assert state.losses == pytest.approx(losses, rel=1e-6)
    assert len(losses) == 12 and losses[-1] < losses[3]
    for name, scales in linears.items():
        found = state.linears[name]
        assert found["salient"].tolist() == scales.mask
        for key, expected in (("scale", scales.alpha), ("row_rotation", scales.r1), ("column_rotation", scales.r2)):
            torch.testing.assert_close(found[key], expected, rtol=1e-6, atol=1e-9)
        assert not torch.equal(found["scale"], oracle.Scales.initial(scales.weight_RI, scales.mask).alpha)
    in_float32 = trained(model, torch.float32, [range(4)])
    assert in_float32.losses == pytest.approx(losses, rel=1e-4)


def test_any_shards_take_the_same_steps(model: Path) -> None:
    whole = trained(model, torch.float32, [range(4)])
    for shards in ([range(1), range(1, 4)], [range(2), range(2, 2), range(2, 3), range(3, 4)]):
        parts = trained(model, torch.float32, shards)
        assert parts.losses == whole.losses
        for name, linear in whole.linears.items():
            assert all(torch.equal(parts.linears[name][key], tensor) for key, tensor in linear.items())


def test_what_is_put_into_the_block_has_the_errors_that_are_told(model: Path) -> None:
    setting = Setting(model, torch.float32, range(4))
    state = begin(METHOD, setting.weights(), setting.taps, [setting.pass_reference()])
    training = setting.training(state)
    compressed = training.compress(training.walk(state))
    parts = training.parts(compressed, setting.taps)
    assert list(parts) == list(setting.weights())
    first = setting.taps[0].linears[0]
    inputs: list[Tensor] = []
    hook = setting.block.get_submodule(first).register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    for sequence in range(4):
        setting.calibration.forward(setting.block, 0, sequence)
    hook.remove()
    weight_OI = setting.weights()[first]
    difference_OI = weight_OI - compressed[first].dequantize()
    for x_TI, error in zip(inputs, parts[first].errors, strict=True):
        assert error.num_tokens == len(x_TI) == 12
        assert error.error == pytest.approx(float((x_TI @ difference_OI.T).square().sum()), rel=1e-5)
        assert error.reference == pytest.approx(float((x_TI @ weight_OI.T).square().sum()), rel=1e-5)


def test_a_loss_that_is_not_finite_ends_the_training(model: Path) -> None:
    setting = Setting(model, torch.float32, range(2))
    state = begin(METHOD, setting.weights(), setting.taps, [setting.pass_reference()])
    training = setting.training(state)
    first = next(iter(state.linears))
    state.linears[first]["scale"][0] = float("nan")
    with pytest.raises(NumericalError, match="block: the loss of training step 1 is nan"):
        training.walk(state)


def test_a_number_beyond_16_bits_names_the_linear(model: Path) -> None:
    setting = Setting(model, torch.float32, range(1))
    last = list(setting.weights())[-1]
    setting.weights()[last].mul_(1e8)
    state = begin(METHOD, setting.weights(), setting.taps, [setting.pass_reference()])
    with pytest.raises(NumericalError, match=rf"block\.{last}: a scale does not fit into 16 bits"):
        setting.training(state)
