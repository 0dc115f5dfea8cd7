"""Training a wrapped model by what PyTorch and others offer for it: each against a plain loop, or their own numbers."""

import copy
import dataclasses
import os
import subprocess
import sys
import warnings

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
import transformers
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import s2wrap
from s2wrap.errors import S2WrapError

IMAGES = torch.randn(2, 3, 200, 200, generator=torch.Generator().manual_seed(0))
INTEGRATIONS = "needs the [integrations] extra"


def new_vit():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0).eval()


def new_dino(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Dinov2Config(**sizes, image_size=32, patch_size=8, **options)
    return transformers.Dinov2Model(config).eval()


def gradients(model, images=IMAGES):
    model.zero_grad()
    model(images).spatial.pow(2).sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("make", [new_vit, new_dino])
@pytest.mark.parametrize("convention", ["timm", "transformers", "newer transformers"])
def test_checkpointing_by_any_name_keeps_less_and_gives_the_same_gradients(make, convention):
    model = s2wrap.wrap(make(), (1, 2), frozen=False).train()
    expected, kept = gradients(model), kept_for_backward(model)
    on, off = {
        "timm": (model.set_grad_checkpointing, lambda: model.set_grad_checkpointing(enable=False)),
        "transformers": (
            lambda: model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False}),
            model.gradient_checkpointing_disable,
        ),
        "newer transformers": (model.activation_checkpointing_enable, model.activation_checkpointing_disable),
    }[convention]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on()
    assert kept_for_backward(model) < 0.7 * kept
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    off()
    assert kept_for_backward(model) == kept


def kept_for_backward(model):
    """Bytes that autograd keeps of a call, weights among them."""
    seen = {}

    def keep(tensor):
        seen[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = model(IMAGES)
    del features
    return sum(seen.values())


def test_models_without_checkpointing_say_so_and_what_would_work():
    resnet = torchvision.models.resnet18()
    callables = s2wrap.wrap(nn.AvgPool2d(16), (1,), image_size=64, frozen=False)
    vgg = s2wrap.wrap(timm.create_model("vgg11", num_classes=0), (1,), frozen=False)
    for model in (s2wrap.wrap(resnet, (1,), frozen=False), callables, vgg):
        for call in (model.set_grad_checkpointing, model.gradient_checkpointing_enable):
            with pytest.raises(
                S2WrapError, match=rf"{model.backbone.name}.* no gradient checkpointing.*of timm or tra"
            ):
                call()
    dino = s2wrap.wrap(new_dino(), (1,))
    with pytest.raises(S2WrapError, match="has no effect.*wrap with frozen=False"):
        dino.gradient_checkpointing_enable()
    with pytest.raises(S2WrapError, match=r"every_n_layers=2 has no effect on .*test_vit"):
        s2wrap.wrap(new_vit(), frozen=False).activation_checkpointing_enable(every_n_layers=2)


def test_an_open_clip_model_whose_checkpointing_does_nothing_says_so():
    import open_clip

    tower = open_clip.model.CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, image_size=64)
    text = open_clip.model.CLIPTextCfg(context_length=8, vocab_size=100, width=32, heads=2, layers=1)
    model = s2wrap.wrap(open_clip.CLIP(16, tower, text), (1,), frozen=False)
    with pytest.raises(S2WrapError, match=r"set_grad_checkpointing\(\) of .* does nothing"):
        model.set_grad_checkpointing()


def lora(model, **options):
    peft = pytest.importorskip("peft", reason=INTEGRATIONS)
    torch.manual_seed(1)
    options = {"target_modules": ["qkv"], "r": 2, "lora_dropout": 0.5, "init_lora_weights": False} | options
    return peft.get_peft_model(model, peft.LoraConfig(**options))


def trained(model):
    return {name.split(".model.")[-1] for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("after", [False, True])
def test_lora_trains_and_its_dropout_runs_whether_it_came_before_or_after(frozen, after):
    plain = lora(new_vit())
    wanted, base = trained(plain), plain.get_base_model()
    model = lora(s2wrap.wrap(new_vit(), (1,), frozen=frozen)) if after else s2wrap.wrap(plain, (1,), frozen=frozen)
    assert trained(model) == wanted
    assert len(wanted) == 2 * len(base.blocks)
    images = torch.randn(2, 3, 160, 160)
    model.eval()
    assert torch.equal(model(images).spatial, model(images).spatial)
    torch.testing.assert_close(model(images).tokens, base.eval().forward_features(images)[:, 1:])
    model.train()
    assert not torch.equal(model(images).spatial, model(images).spatial)
    vit = (model.get_base_model() if after else model).backbone.model
    assert vit.blocks[0].attn.training is not frozen
    assert vit.blocks[0].attn.qkv.base_layer.training is not frozen
    gradient = gradients(model, images)
    assert {name.split(".model.")[-1] for name in gradient} == wanted


def test_what_peft_trains_beside_adapters_trains_and_adapters_for_inference_stay_frozen(tmp_path):
    tuned = lora(new_vit(), bias="all", modules_to_save=["norm"])
    wanted = trained(tuned)
    assert any(name.endswith("bias") for name in wanted)
    assert trained(s2wrap.wrap(tuned)) == wanted
    tuned.save_pretrained(tmp_path)
    peft = sys.modules["peft"]
    read = peft.PeftModel.from_pretrained(new_vit(), str(tmp_path))
    model = s2wrap.wrap(read, (1,)).train()
    assert trained(model) == set()
    assert not any(part.training for part in model.backbone.modules())
    torch.testing.assert_close(model(IMAGES).spatial, s2wrap.wrap(tuned, (1,)).eval()(IMAGES).spatial)


@pytest.mark.parametrize("own", [False, True])
def test_lora_of_a_transformers_model_gives_its_own_features_and_checkpoints(own):
    peft = pytest.importorskip("peft", reason=INTEGRATIONS)
    dino = new_dino()
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    if own:
        dino.add_adapter(config)
    model = s2wrap.wrap(dino if own else peft.get_peft_model(dino, config), (1,), frozen=False).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images).tokens, dino.eval()(images).last_hidden_state[:, 1:])
    expected = gradients(model.train(), images)
    assert expected
    model.gradient_checkpointing_enable()
    for name, gradient in gradients(model, images).items():
        torch.testing.assert_close(gradient, expected[name])


def test_what_adds_tokens_beside_a_model_is_refused():
    peft = pytest.importorskip("peft", reason=INTEGRATIONS)
    model = peft.PeftModel.__new__(peft.PeftModel)
    nn.Module.__init__(model)
    model._is_prompt_learning, model.active_adapter = True, "default"
    model._peft_config = {"default": peft.PromptTuningConfig(num_virtual_tokens=2)}
    with pytest.raises(S2WrapError, match="_TUNING adds tokens beside a model.*such as LoRA"):
        s2wrap.wrap(model)


def test_adapters_are_saved_by_peft_merged_and_not_wrapped_twice(tmp_path):
    model = lora(s2wrap.wrap(new_vit(), (1, 2))).eval()
    with pytest.raises(S2WrapError, match="this model is wrapped already"):
        s2wrap.wrap(model)
    expected = model(IMAGES).spatial
    model.save_pretrained(tmp_path / "adapter")
    read = sys.modules["peft"].PeftModel.from_pretrained(s2wrap.wrap(new_vit(), (1, 2)), str(tmp_path / "adapter"))
    torch.testing.assert_close(read.eval()(IMAGES).spatial, expected)
    with pytest.raises(S2WrapError, match="rebuild=False"):
        model.get_base_model().save(tmp_path / "whole")
    merged = model.merge_and_unload()
    merged.save(tmp_path / "merged")
    torch.testing.assert_close(s2wrap.load(tmp_path / "merged")(IMAGES).spatial, expected, atol=1e-4, rtol=1e-4)


def test_a_model_without_peft_imports_none():
    assert "s2wrap" in sys.modules
    code = "import s2wrap, sys, torch; s2wrap.wrap(torch.nn.AvgPool2d(16), image_size=64).train(); assert not "
    subprocess.run([sys.executable, "-c", code + "[n for n in sys.modules if n.startswith('peft')]"], check=True)


class Tuple(nn.Module):
    """The wrapped model's answer as a tuple, which torch's own hooks know."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        features = self.model(images)
        return (*features.maps, *features.prefixes)


@pytest.mark.parametrize("inputs", [True, False])
def test_full_backward_hooks_get_what_torch_gives_on_a_module_of_tuples(inputs):
    model, seen = s2wrap.wrap(new_vit(), (1, 2), frozen=False), {"ours": [], "theirs": [], "pre": []}
    other = Tuple(copy.deepcopy(model))
    other.register_full_backward_hook(lambda _, *gradients: seen["theirs"].append(gradients))
    handle = model.register_full_backward_hook(lambda _, *gradients: seen["ours"].append(gradients))
    first = model.register_full_backward_pre_hook(lambda _, gradients: seen["pre"].append(gradients))
    images = IMAGES.clone().requires_grad_(inputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        model(images).spatial.square().sum().backward()
        other(images)[0].square().sum().backward()
    (grad_input, grad_output), (their_input, their_output) = *seen["ours"], *seen["theirs"]
    for one, two in zip((*grad_input, *grad_output), (*their_input, *their_output), strict=True):
        torch.testing.assert_close(one, two)
    assert torch.equal(seen["pre"][0][0], grad_output[0])
    handle.remove(), first.remove()
    model(images).spatial.sum().backward()
    assert len(seen["ours"]) == len(seen["pre"]) == 1


def test_full_backward_hooks_change_gradients_come_in_order_and_survive_a_failed_call_and_a_copy():
    model, order = s2wrap.wrap(new_vit(), (1,), tile_batch=1), []
    model.backbone.register_full_backward_hook(lambda *_: order.append("backbone"))
    model.register_full_backward_hook(lambda _, inputs, __: order.append("second") or (2 * inputs[0],))
    model.register_full_backward_hook(lambda *_: order.append("first"), prepend=True)
    with pytest.raises(S2WrapError):
        model(torch.zeros(1, 5, 64, 64))
    results = []
    for each in (s2wrap.wrap(new_vit(), (1,)), model, copy.deepcopy(model)):
        images = IMAGES.clone().requires_grad_()
        each(images).pooled.sum().backward()
        results.append(images.grad)
    torch.testing.assert_close(results[1], 2 * results[0])
    torch.testing.assert_close(results[2], results[1])
    assert order == ["backbone", "backbone", "first", "second"] * 2


class Head(nn.Module):
    """What the Trainer of transformers takes: a loss and logits of labelled pixels."""

    def __init__(self, model):
        super().__init__()
        self.model, self.head = model, nn.Linear(model.num_features, 3)

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.model(pixel_values).pooled)
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if labels is not None else {"logits": logits}

    def activation_checkpointing_enable(self, **options):
        self.model.activation_checkpointing_enable(**options)

    def gradient_checkpointing_enable(self, **options):
        self.model.gradient_checkpointing_enable(**options)


def samples(count=6):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 64, 64, generator=generator)
    return [{"pixel_values": image, "labels": torch.tensor(n % 3)} for n, image in enumerate(images)]


def loss_by_hand(make, count=6, batch=3, rate=0.01):
    """The loss of every batch of a plain loop of SGD, and the trained head."""
    torch.manual_seed(2)
    head, losses = Head(s2wrap.wrap(make(), (1, 2), frozen=False)), []
    optimizer = torch.optim.SGD(head.parameters(), rate)
    rows = samples(count)
    for start in range(0, count, batch):
        images, labels = (
            torch.stack([row[name] for row in rows[start : start + batch]]) for name in ("pixel_values", "labels")
        )
        loss = head(images, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, head


def test_lightning_validates_fits_predicts_and_loads_its_checkpoint_with_the_losses_of_a_plain_loop(tmp_path):
    lightning = pytest.importorskip("lightning", reason=INTEGRATIONS)

    class Probe(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.net, self.losses = Head(s2wrap.wrap(new_vit(), (1, 2), frozen=False)), []

        def training_step(self, batch, _number):
            loss = self.net(**batch)["loss"]
            self.losses.append(loss.item())
            return loss

        def validation_step(self, batch, _number):
            self.log("loss", self.net(**batch)["loss"])

        def predict_step(self, batch, _number):
            return self.net(batch["pixel_values"])["logits"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    batches = torch.utils.data.DataLoader(samples(), batch_size=3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    probe = Probe()
    trainer.validate(probe, batches, verbose=False)  # in inference mode: what is kept there must not spoil training
    trainer.fit(probe, batches)
    losses, head = loss_by_hand(new_vit)
    assert probe.losses == pytest.approx(losses, abs=1e-5)
    (logits, _) = trainer.predict(probe, batches)
    torch.testing.assert_close(logits, head.eval()(next(iter(batches))["pixel_values"])["logits"], atol=1e-5, rtol=0)
    path = trainer.checkpoint_callback.best_model_path
    (again, _) = trainer.predict(Probe.load_from_checkpoint(path, map_location="cpu"), batches)
    assert torch.equal(again, logits)


@pytest.mark.parametrize("make", [new_vit, new_dino])
def test_the_trainer_of_transformers_has_the_losses_of_a_plain_loop_with_checkpointing_too(make, tmp_path):
    losses, head = loss_by_hand(make)
    newer = "activation_checkpointing" in {f.name for f in dataclasses.fields(transformers.TrainingArguments)}
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        train_sampling_strategy="sequential",
        optim="sgd",
        learning_rate=0.01,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        **{f"{'activation' if newer else 'gradient'}_checkpointing": True},
    )
    torch.manual_seed(2)
    model = Head(s2wrap.wrap(make(), (1, 2), frozen=False))
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=samples(), eval_dataset=samples())
    trainer.train()
    assert [row["loss"] for row in trainer.state.log_history if "loss" in row] == pytest.approx(losses, abs=1e-3)
    found = torch.from_numpy(trainer.predict(samples()).predictions)
    images = torch.stack([row["pixel_values"] for row in samples()])
    with torch.no_grad():
        torch.testing.assert_close(found, head.eval()(images)["logits"], atol=1e-4, rtol=0)


def test_accelerate_trains_in_bfloat16_and_offloads_a_head_with_its_wrapped_model(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # other tests have one in float32
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    torch.manual_seed(2)
    head = Head(s2wrap.wrap(new_vit(), (1, 2), frozen=False))
    plain = copy.deepcopy(head)
    prepared, optimizer = accelerator.prepare(head, torch.optim.SGD(head.parameters(), 0.01))
    labels = torch.tensor([0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(IMAGES, labels)["loss"]
    loss = prepared(IMAGES, labels)["loss"]
    torch.testing.assert_close(loss, expected)
    assert not torch.equal(loss, plain(IMAGES, labels)["loss"])  # without autocast
    accelerator.backward(loss)
    optimizer.step()
    assert all(weight.grad is not None for weight in head.head.parameters())
    whole = Head(s2wrap.wrap(new_vit(), (1, 2)))
    expected = whole(IMAGES)["logits"]
    places = {"model": "disk", "head": "cpu"}
    accelerate.dispatch_model(whole, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert any(weight.is_meta for weight in whole.parameters())
    torch.testing.assert_close(whole(IMAGES)["logits"], expected)


def _process(rank, port):
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    try:
        labels, mine = torch.tensor([0, 1]), slice(rank, rank + 1)
        torch.manual_seed(2)
        head = Head(s2wrap.wrap(new_vit(), (1, 2), frozen=False))
        whole, parallel, sharded, inside = (copy.deepcopy(head) for _ in range(4))
        whole(IMAGES, labels)["loss"].backward()
        expected = {name: weight.grad for name, weight in whole.named_parameters() if weight.grad is not None}
        replicated = DistributedDataParallel(parallel)
        fully_shard(sharded.model)
        fully_shard(sharded)
        for block in inside.model.backbone.model.blocks:
            fully_shard(block)
        fully_shard(inside.model.backbone.model)
        fully_shard(inside)
        for model in (replicated, sharded, inside):
            model(IMAGES[mine], labels[mine])["loss"].backward()
        for model in (parallel, sharded, inside):
            for name, weight in model.named_parameters():
                if weight.grad is not None:
                    found = weight.grad.full_tensor() if hasattr(weight.grad, "full_tensor") else weight.grad
                    torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=1e-3)
            assert {name for name, weight in model.named_parameters() if weight.grad is not None} == expected.keys()
    finally:
        dist.destroy_process_group()


def test_two_processes_of_ddp_and_of_fsdp_have_the_gradients_of_the_whole_batch():
    mp.spawn(_process, (29900 + os.getpid() % 90,), nprocs=2)
