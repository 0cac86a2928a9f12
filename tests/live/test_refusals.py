"""What `accelerate` refuses, each before anything is changed."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

import asd_policy
from asd_policy import accelerate
from asd_policy.errors import ConfigError, UnknownNameError
from tests.live import doubles
from tests.live.doubles import scheduler
from tests.live.policies import lerobot, real_stanford, robomimic

STEPS = doubles.NUM_STEPS


def ddim(**settings: object) -> DDIMScheduler:
    return DDIMScheduler(num_train_timesteps=STEPS, beta_schedule="squaredcos_cap_v2", **settings)


@pytest.mark.parametrize(
    "policy",
    [None, object(), nn.Linear(2, 2), doubles.Net((2, 2), 1), "square", SimpleNamespace(policy=3, start_episode=4)],
)
def test_objects_that_are_no_diffusion_policies(policy):
    with pytest.raises(ConfigError, match=r"expected a live diffusion policy of one of lerobot, robomimic"):
        accelerate(policy)


def test_classes_wrappers_and_parts():
    policy = lerobot().policy
    for wrong, message in [
        (doubles.LeRobotPolicy, "the class LeRobotPolicy"),
        (torch.compile(policy), "_orig_mod"),
        (nn.DataParallel(policy), "`module`"),
        (policy.diffusion, "live diffusion policy"),
    ]:
        with pytest.raises(ConfigError, match=message):
            accelerate(wrong)
    assert not hasattr(policy, "asd")


def test_a_policy_of_ours_needs_none(tmp_path):
    from asd_policy import load_policy
    from tests.tiny import tiny_checkpoint

    policy = load_policy(tiny_checkpoint(tmp_path / "tiny", {"object": 5}, action_dim=2))
    with pytest.raises(ConfigError, match="live diffusion policy"):
        accelerate(policy)


def test_training_mode():
    for subject in (lerobot(), real_stanford("global")):
        subject.policy.train()
        with pytest.raises(ConfigError, match="training mode"):
            accelerate(subject.policy)
        accelerate(subject.policy.eval())
        subject.policy.train()
        with pytest.raises(ConfigError, match="training mode"):
            subject.episode()
    subject = robomimic()
    subject.model.nets.train()
    with pytest.raises(ConfigError, match=r"set_eval\(\)"):
        accelerate(subject.policy)


def test_networks_whose_output_is_random():
    for subject in (lerobot(dropout=0.1), real_stanford("transformer")):
        net = getattr(subject.model, "unet", None) or subject.model.model
        net.train()
        with pytest.raises(ConfigError, match=r"layers.2 \(Dropout\) is in training mode"):
            accelerate(subject.policy)
        accelerate(subject.policy.eval())
        net.train()
        with pytest.raises(ConfigError, match="Dropout"):
            subject.episode()
    accelerate(lerobot().policy)  # a dropout of 0 is none


def test_policies_within_a_chunk():
    for subject in (lerobot(), robomimic()):
        subject.begin()
        policy = subject.policy
        if policy is subject.model or hasattr(policy, "diffusion"):
            policy.select_action({"observation.state": torch.zeros(1, doubles.OBS_DIM)})
            left = doubles.TA - 1
        else:
            subject.model.action_queue.extend([0, 0])
            left = 2
        with pytest.raises(ConfigError, match=f"within a chunk, with {left} actions left"):
            accelerate(policy)
        subject.begin()
        accelerate(policy)


def test_two_accelerations():
    subject = robomimic()
    for first, second in [(subject.policy, subject.model), (subject.model, subject.policy)]:
        accelerate(first)
        for policy in (first, second):
            with pytest.raises(ConfigError, match="accelerated already"):
                accelerate(policy)
        subject.model.asd.restore()
        assert not hasattr(subject.policy, "asd")
    policy = lerobot().policy
    policy.asd = "mine"
    with pytest.raises(ConfigError, match="an attribute 'asd' of its own"):
        accelerate(policy)


class Halved(DDPMScheduler):
    """A DDPM with a step of its own."""

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        done = super().step(model_output, timestep, sample, generator=generator)
        done.prev_sample = done.prev_sample / 2
        return done


class Quiet(DDPMScheduler):
    """A DDPM whose noise is smaller than its configuration says."""

    def _get_variance(self, *args, **kwargs):
        return 0.9 * super()._get_variance(*args, **kwargs)


class Backwards(DDPMScheduler):
    """A DDPM with timesteps of its own."""

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        self.timesteps = self.timesteps.flip(0)


def changed() -> DDPMScheduler:
    made = scheduler()
    made.alphas_cumprod = made.alphas_cumprod * 0.99
    return made


def custom(cls: type) -> DDPMScheduler:
    return cls(num_train_timesteps=STEPS, beta_schedule="squaredcos_cap_v2")


@pytest.mark.parametrize(
    ("noise_scheduler", "message"),
    [
        (ddim(), r"DDIMScheduler in 20 steps. DDIM with eta = 0 adds no noise.*as_ddpm=True.*all 20 training steps"),
        (custom(Halved), "is no DDPM, or was changed"),
        (custom(Quiet), "is no DDPM, or was changed"),
        (custom(Backwards), "takes the timesteps"),
        (changed(), "alphas_cumprod"),
        (scheduler(thresholding=True), "thresholding=True"),
        (scheduler(variance_type="learned"), "variance"),
        (scheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr"),
        (EulerDiscreteScheduler(num_train_timesteps=STEPS), "takes the timesteps|no DDPM|cannot take a step"),
        (FlowMatchEulerDiscreteScheduler(num_train_timesteps=STEPS), "prediction_type|no betas"),
        (SimpleNamespace(step=3), "expected a scheduler of diffusers"),
        (3, "expected a scheduler of diffusers"),
    ],
)
def test_schedulers_that_are_no_ddpm(noise_scheduler, message):
    for subject in (lerobot(noise_scheduler=noise_scheduler), real_stanford("global", noise_scheduler=noise_scheduler)):
        names = list(vars(subject.policy))
        with pytest.raises(ConfigError, match=message):
            accelerate(subject.policy)
        assert list(vars(subject.policy)) == names


def test_a_scheduler_that_is_exchanged_later_is_refused_then():
    subject = lerobot()
    accelerate(subject.policy)
    subject.episode()
    subject.model.noise_scheduler = ddim()
    with pytest.raises(ConfigError, match="DDIM"):
        subject.episode()
    subject.model.noise_scheduler = scheduler()
    subject.model.noise_scheduler.alphas_cumprod.mul_(0.99)
    with pytest.raises(ConfigError, match="alphas_cumprod"):
        subject.episode()


def test_ddim_becomes_the_ddpm_of_its_betas_only_if_asked():
    for subject in (lerobot(noise_scheduler=ddim()), real_stanford("global", noise_scheduler=ddim())):
        setattr(*subject.steps, 5)
        accelerate(subject.policy, "ddpm", as_ddpm=True)
        ours = subject.episode()
        assert set(subject.policy.asd.stats.rounds.tolist()) == {STEPS}  # all of them, not 5
        subject.policy.asd.restore()
        subject.model.noise_scheduler = scheduler()
        setattr(*subject.steps, STEPS)
        torch.testing.assert_close(ours, subject.episode(), atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="as_ddpm=True replaces a DDIM scheduler"):
        accelerate(lerobot().policy, as_ddpm=True)


@pytest.mark.parametrize("steps", [0, STEPS + 1, 2.5])
def test_numbers_of_steps(steps):
    subject = lerobot()
    setattr(*subject.steps, steps)
    with pytest.raises(ConfigError, match="num_steps"):
        accelerate(subject.policy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draft": "pth"}, "pth"),
        ({"window": 0}, "window is 0"),
        ({"window": "auto"}, "window='auto'"),
        ({"capture": "none"}, "none"),
        ({"sampler": "ddim:10"}, r"takes 10 steps; the policy's chain has 20. Expected 'asd' or 'ddpm'"),
        ({"sampler": "ddpm", "window": 3}, "option of sampler 'ddpm'"),
        ({"sampler": "ddim", "num_steps": STEPS}, r"a DDIM's law \(eta is 0.0\); the policy's chain is a DDPM"),
        ({"sampler": "ddim", "num_steps": STEPS, "eta": 1.0}, "a DDIM's law"),
        ({"eta": 0.5}, r"a DDIM's law \(eta is 0.5\)"),
        ({"eta": 0.5, "num_steps": STEPS}, "a DDIM's law"),
        ({"generator": 3}, "generator is 3"),
        ({"generator": torch}, "generator is"),
    ],
)
def test_options(arguments, message):
    policy = lerobot().policy
    with pytest.raises(ConfigError, match=message):
        accelerate(policy, **arguments)
    assert not hasattr(policy, "asd")


def test_real_stanfords_masks_and_options():
    policy = accelerate(real_stanford("inpainting").policy)
    data = torch.zeros(2, doubles.HORIZON, doubles.ACTION_DIM + doubles.OBS_DIM)
    mask = torch.zeros_like(data, dtype=torch.bool)
    mask[0, 0] = True
    with pytest.raises(ConfigError, match="differs between the rows"):
        policy.conditional_sample(data, mask)
    with pytest.raises(ConfigError, match="True everywhere"):
        policy.conditional_sample(data, torch.ones_like(mask))
    with pytest.raises(ConfigError, match="'eta' to its scheduler's step"):
        policy.conditional_sample(data, torch.zeros_like(mask), eta=0.5)
    with pytest.raises(ConfigError, match="'eta' to its scheduler's step"):
        accelerate(doubles.seeded(doubles.RealStanfordPolicy, "global", eta=0.5))


def test_errors_are_of_the_family():
    with pytest.raises(asd_policy.AsdPolicyError):
        accelerate(None)
    with pytest.raises(UnknownNameError):
        accelerate(lerobot().policy, "asdf")


BLOCK_ALL_BUT_TORCH = """
import sys
import torch, numpy
before = {name.split(".")[0] for name in sys.modules}
class Block:
    def find_spec(self, name, path=None, target=None):
        root = name.split(".")[0]
        if root not in before and root not in sys.stdlib_module_names and root != "asd_policy":
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Block())
from asd_policy import accelerate
try:
    accelerate(object())
except ValueError as error:
    print(error)
"""


def test_it_needs_torch_alone():
    done = subprocess.run([sys.executable, "-c", BLOCK_ALL_BUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "expected a live diffusion policy" in done.stdout
