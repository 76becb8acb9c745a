"""One step: its loss, its draws, its optimizers; and the batches it gets."""

import pytest
import torch
import torch.nn.functional as F

from synthvision.classification.augment import AugmentConfig
from synthvision.classification.batches import Batch, EvalBatches, TrainBatches
from synthvision.classification.model import ModelConfig, as_input
from synthvision.classification.module import OPTIMIZERS, Classifier, ClassifierConfig
from synthvision.classification.schedule import class_weights, mixer, plateau_factor
from synthvision.data.torch_data import ImageTensors

MODEL = ModelConfig("vit_tiny_patch16_224", 16, 8, 8, 2, 2)
DROPPING = ModelConfig("vit_tiny_patch16_224", 16, 8, 8, 2, 2, attention_dropout=0.5, drop_path=0.5)
AUGMENT = AugmentConfig(flips=True, rotation=15, shift=0.06, brightness=0.1, blur=0.006, noise=0.02)


def config(**changes: object) -> ClassifierConfig:
    values: dict = {"model": MODEL, "optimizer": "adam", "lr": 1e-3, "epochs": 4, "batch_size": 4}
    return ClassifierConfig(**(values | changes))


def data(count: int = 10) -> ImageTensors:
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=draws, dtype=torch.uint8)
    return ImageTensors(pixels, torch.arange(count) % 2, ["real"] * count)


def batch(epoch: int = 0, step: int = 0) -> Batch:
    return Batch(data().images, data().labels, epoch, step)


def module(seed: int = 0, **changes: object) -> Classifier:
    made = Classifier(config(**changes), classes=2, steps_per_epoch=3, seed=seed)
    made.log = made.log_dict = lambda *_, **__: None  # there is no trainer to log to
    return made


def test_validation_loss_is_plain_cross_entropy_without_augmentation_or_smoothing():
    classifier = module(augment=AUGMENT, label_smoothing=0.3).eval()
    logits = classifier.model(as_input(batch().images / 255, classifier.model))
    torch.testing.assert_close(classifier.step(batch(), "val"), F.cross_entropy(logits, batch().labels))


def test_training_loss_spreads_a_share_of_the_target():
    smooth, plain = module(label_smoothing=0.3), module()
    log_p = plain(batch().images / 255).log_softmax(1)
    expected = 0.7 * F.nll_loss(log_p, batch().labels) - 0.3 * log_p.mean()
    torch.testing.assert_close(smooth.step(batch(), "train"), expected)


@pytest.mark.parametrize("changes", [{"augment": AUGMENT}, {"model": DROPPING}])
def test_a_steps_draws_depend_on_seed_epoch_and_step_alone(changes):
    def loss(epoch: int = 0, step: int = 0, seed: int = 0, disturb: int = 0) -> float:
        classifier = module(**changes)
        classifier.seed = seed
        torch.manual_seed(disturb)
        torch.rand(disturb)
        return classifier.step(batch(epoch, step), "train").item()

    assert loss() == loss(disturb=3)
    assert len({loss(), loss(epoch=1), loss(step=1), loss(seed=1)}) == 4


def test_nothing_is_drawn_from_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    module(model=DROPPING, augment=AUGMENT).step(batch(), "train")
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_depend_on_the_seed_alone():
    first, again, other = (module(seed=s).model.blocks[0].attn.qkv.weight for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_is_the_named_one_with_its_rates(name):
    optimizer = module(optimizer=name, lr=0.01, weight_decay=0.1).configure_optimizers()["optimizer"]
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_the_rate_of_the_first_step_is_the_warmed_up_one():
    made = module(lr=0.3, warmup_epochs=1).configure_optimizers()
    assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(0.1)  # 3 steps per epoch


def test_training_batches_show_every_image_once_and_name_their_draws():
    batches = TrainBatches(data(10), batch_size=4, samples=None, seed=0)
    batches.sampler.set_epoch(2)
    seen = list(batches)
    assert [(len(b.labels), b.epoch, b.step) for b in seen] == [(4, 2, 0), (4, 2, 1), (2, 2, 2)]
    assert len(batches) == 3
    shown = sorted(image.numpy().tobytes() for b in seen for image in b.images)
    assert shown == sorted(image.numpy().tobytes() for image in data(10).images)


def test_a_number_of_samples_shows_the_classes_equally():
    few = ImageTensors(data(12).images, torch.tensor([0, 0, *[1] * 10]), ["real"] * 12)
    labels = torch.cat([b.labels for b in TrainBatches(few, 8, 40, 0)])
    assert torch.bincount(labels).tolist() == [20, 20]


def test_evaluation_batches_keep_the_order():
    batches = EvalBatches(data(10), 4)
    assert torch.equal(torch.cat([b.images for b in batches]), data(10).images)
    assert torch.equal(torch.cat([b.labels for b in batches]), data(10).labels)
    assert len(batches) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of .*'sgd'"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"schedule": "step"}, "schedule"),
        ({"warmup_epochs": 4}, "warmup_epochs must be .*below epochs=4"),
        ({"samples_per_epoch": 0}, "samples_per_epoch"),
        ({"precision": "16"}, "precision"),
    ],
)
def test_broken_rules_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_no_augmentation_is_the_default():
    assert config().augment == AugmentConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": -1.0}, "mixup must be 0 or more"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\]"),
        ({"gradient_clip": 0.0}, "gradient_clip must be above 0"),
        ({"stop_after": 0}, "stop_after"),
        ({"plateau_factor": 1.0}, "plateau_factor"),
        ({"class_weights": "equal"}, "class_weights must be null, balanced or a number"),
        ({"class_weights": "balanced", "samples_per_epoch": 8}, "class_weights must be null where samples_per_epoch"),
    ],
)
def test_broken_rules_of_what_is_off_by_default_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_balanced_weights_make_the_classes_weigh_the_same():
    weights = class_weights(config(class_weights="balanced"), [30, 10])
    assert (weights * torch.tensor([30.0, 10.0])).tolist() == [20, 20]
    assert class_weights(config(class_weights=[1, 2.5]), [5, 5]).tolist() == [1, 2.5]
    assert class_weights(config(), [5, 5]) is None
    with pytest.raises(ValueError, match=r"must hold 2 numbers, one per class; it is \[1\]"):
        class_weights(config(class_weights=[1]), [5, 5])


def test_class_weights_weigh_the_training_loss_alone():
    weighed = Classifier(config(class_weights="balanced"), 2, 3, 0, [30, 10])
    weighed.log = weighed.log_dict = lambda *_, **__: None
    logits, labels = weighed(batch().images / 255), batch().labels
    expected = F.cross_entropy(logits, labels, weight=torch.tensor([2 / 3, 2.0]))
    torch.testing.assert_close(weighed.step(batch(), "train"), expected)
    torch.testing.assert_close(weighed.eval().step(batch(), "val"), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("changes", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_mixed_batches_keep_the_share_of_each_class_and_their_draws_are_keyed(changes):
    def loss(epoch: int, disturb: int = 0) -> float:
        made = module(**changes)
        torch.manual_seed(disturb)
        return made.step(batch(epoch), "train").item()

    assert loss(0) == loss(0, disturb=3)
    mixed = [loss(epoch) for epoch in range(4)]
    assert len(set(mixed)) > 1
    assert mixed != [module().step(batch(epoch), "train").item() for epoch in range(4)]
    torch.manual_seed(0)
    images, targets = mixer(config(**changes), 2)(torch.rand(10, 3, 16, 16), torch.arange(10) % 2)
    assert images.shape == (10, 3, 16, 16)
    torch.testing.assert_close(targets.sum(1), torch.ones(10))


def test_the_moving_average_follows_and_is_what_is_validated_and_kept():
    made = module(ema=0.9)
    made.on_train_batch_end()
    start = made.model.head.weight.detach().clone()
    with torch.no_grad():
        made.model.head.weight += torch.randn(start.shape)
    last = made.model.head.weight.detach().clone()
    made.on_train_batch_end()
    torch.testing.assert_close(made.kept.head.weight, 0.9 * start + 0.1 * last)
    logits = made.kept.eval()(as_input(batch().images / 255, made.kept))
    torch.testing.assert_close(made.eval()(batch().images / 255), logits)
    assert not torch.allclose(made.train()(batch().images / 255), logits)
    assert {name.split(".")[0] for name in made.state_dict()} >= {"model", "averaged"}
    assert sum(p.numel() for g in made.configure_optimizers()["optimizer"].param_groups for p in g["params"]) == sum(
        p.numel() for p in made.model.parameters()
    )


def test_lower_layers_learn_more_slowly():
    made = module(layer_decay=0.5, lr=0.1)
    optimizer = made.configure_optimizers()["optimizer"]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    of = [
        made.model.patch_embed.proj.weight,
        *(block.mlp.fc1.weight for block in made.model.blocks),
        made.model.head.weight,
    ]
    assert [rates[id(p)] for p in of] == pytest.approx([0.0125, 0.025, 0.05, 0.1])


def test_frozen_layers_stay_as_they_are():
    made = module(frozen_layers=2)
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("patch_embed", "cls_token", "blocks.0")) for name in trained)
    assert {name.split(".")[0] for name in trained} == {"blocks", "norm", "head"}
    with pytest.raises(ValueError, match="frozen_layers must be below the network's 4 layers; it is 4"):
        module(frozen_layers=4)


def test_the_rate_falls_where_the_loss_does_not():
    recipe = config(schedule="plateau", plateau_factor=0.5, plateau_patience=1)
    losses = [1.0, 0.9, 0.95, 0.95, 0.95, 0.95, 0.95, 0.1]
    found = [plateau_factor(losses[:n], recipe) for n in range(len(losses) + 1)]
    assert found == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]
