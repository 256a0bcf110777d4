"""One thing that is timed beside others, in a process of its own: it takes a turn for every line on its stdin.

    python tests/peers.py FOLDER unifloral 1 1  # threads, seeds; tests/benchmark.py calls it

The code of others is imported from FOLDER, which holds their repositories. Each does on random data what its own
training loop does between two logs, sampling included. The JAX ones have an environment without torch, so no more than
numpy is imported before it is known which one it is.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

OBS_DIM, ACT_DIM, ROWS = 17, 6, 20_000  # locomotion, as in tests/benchmark.py
Run = tuple[Callable[[int], None], int]  # do n rounds; updates of a round


# ---------------------------------------------------------------- turns
def serve(run: Callable[[int], None], updates: int = 1, seconds: float = 1.0) -> None:
    """Warm up, print "ready", then answer every line on stdin with the milliseconds of an update in a turn."""
    run(3)  # compiles
    began = time.perf_counter()
    run(3)
    rounds = max(1, round(seconds * 3 / (time.perf_counter() - began)))
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        run(rounds)
        print(1000 * (time.perf_counter() - began) / (rounds * updates), flush=True)


# ---------------------------------------------------------------- the code of others
def load_peer(path: Path, *absent: str):
    """A script of others as a module. `absent`: what it imports for environments and logs; nobody calls it."""
    sys.modules |= {name: MagicMock() for name in absent}
    spec = importlib.util.spec_from_file_location("peer", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def transitions() -> dict[str, np.ndarray]:
    """A dataset under D4RL's names."""
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(2, ROWS, OBS_DIM)), rng.uniform(-0.9, 0.9, (ROWS, ACT_DIM))
    data = {"observations": obs[0], "actions": action, "rewards": rng.normal(size=ROWS), "next_observations": obs[1]}
    return {name: x.astype(np.float32) for name, x in data.items()} | {"terminals": np.zeros(ROWS, np.float32)}


def unifloral(root: Path, _threads: int, seeds: int) -> Run:
    """Unifloral's IQL: many updates in one scan, as released; several seeds by vmap around it."""
    import jax
    import jax.numpy as jnp

    jax.devices()  # started before the script overwrites XLA_FLAGS
    peer = load_peer(root / "algorithms/iql.py", "d4rl", "gym", "wandb")
    args, data = peer.Args(), {name: jnp.array(x) for name, x in transitions().items()}
    dataset = peer.Transition(data["observations"], data["actions"], data["rewards"], data["next_observations"],
                              data["terminals"])  # fmt: skip
    scale = dataset.obs.mean(axis=0), dataset.obs.std(axis=0)
    actor = peer.TanhGaussianActor(ACT_DIM, *scale)
    q, value = peer.DualQNetwork(*scale), peer.StateValueFunction(*scale)
    step, updates = peer.make_train_step(args, actor.apply, q.apply, value.apply, dataset), 50

    def start(rng):
        rng, rng_actor, rng_q, rng_value = jax.random.split(rng, 4)
        obs, action = jnp.zeros(OBS_DIM), jnp.zeros(ACT_DIM)
        return rng, peer.AgentTrainState(
            actor=peer.create_train_state(args, rng_actor, actor, [obs]),
            dual_q=peer.create_train_state(args, rng_q, q, [obs, action]),
            dual_q_target=peer.create_train_state(args, rng_q, q, [obs, action]),
            value=peer.create_train_state(args, rng_value, value, [obs]),
        )

    def scan(state):
        return jax.lax.scan(step, state, None, updates)

    # Theirs scans without jit, 2,500 updates at once: traced anew at every call, which does not count there.
    if seeds == 1:
        state, scan = start(jax.random.PRNGKey(0)), jax.jit(scan)
    else:
        state = jax.vmap(start)(jax.random.split(jax.random.PRNGKey(0), seeds))
        scan = jax.jit(jax.vmap(scan))

    def run(n: int) -> None:
        nonlocal state
        for _ in range(n):
            state, loss = scan(state)
        jax.block_until_ready((state, loss))

    return run, updates


def jax_corl(root: Path, _threads: int, _seeds: int) -> Run:
    """JAX-CORL's IQL as released: eight updates a call, layer norm in V."""
    import jax
    import jax.numpy as jnp

    jax.devices()
    peer = load_peer(root / "algos/iql.py", "d4rl", "gym", "wandb")
    data = {name: jnp.array(x) for name, x in transitions().items()}
    dataset = peer.Transition(*data.values(), dones_float=data["terminals"])
    rng = jax.random.PRNGKey(0)
    state = peer.create_iql_train_state(rng, dataset.observations[0], dataset.actions[0], peer.config)
    update = jax.jit(peer.IQL().update_n_times, static_argnums=(3,))

    def run(n: int) -> None:
        nonlocal rng, state
        for _ in range(n):
            rng, key = jax.random.split(rng)
            state, metrics = update(state, dataset, key, peer.config)
        jax.block_until_ready((state, metrics))

    return run, peer.config.n_jitted_updates


def corl(root: Path, threads: int, _seeds: int) -> Run:
    """CORL's IQL."""
    import torch

    torch.set_num_threads(threads)
    peer = load_peer(root / "algorithms/offline/iql.py", "d4rl", "gym", "pyrallis", "wandb")
    config = peer.TrainConfig(device="cpu")
    buffer = peer.ReplayBuffer(OBS_DIM, ACT_DIM, ROWS, config.device)
    buffer.load_d4rl_dataset(transitions())
    actor = peer.GaussianPolicy(OBS_DIM, ACT_DIM, 1.0)
    q, value = peer.TwinQ(OBS_DIM, ACT_DIM), peer.ValueFunction(OBS_DIM)
    actor_adam, q_adam, value_adam = (torch.optim.Adam(network.parameters(), lr=3e-4) for network in (actor, q, value))
    trainer = peer.ImplicitQLearning(
        max_action=1.0, actor=actor, actor_optimizer=actor_adam, q_network=q, q_optimizer=q_adam, v_network=value,
        v_optimizer=value_adam, iql_tau=config.iql_tau, beta=config.beta, max_steps=config.max_timesteps,
        discount=config.discount, tau=config.tau, device=config.device,
    )  # fmt: skip

    def run(n: int) -> None:
        for _ in range(n):
            trainer.train([x.to(config.device) for x in buffer.sample(config.batch_size)])

    return run, 1


def original(root: Path, threads: int, _seeds: int) -> Run:
    """IPL-IQL of the paper's authors, as their configs/metaworld/ipl_iql.yaml says."""
    import gymnasium
    import torch

    torch.set_num_threads(threads)
    sys.path.insert(0, str(root))
    sys.modules |= {"gym": gymnasium, "d4rl": MagicMock(), "robomimic": MagicMock(), "robomimic.utils": MagicMock()}
    # Packages whose own __init__ imports simulators: empty, with the same folder.
    for name in ("research", "research.envs"):
        sys.modules[name] = module = type(sys)(name)
        module.__path__ = [str(root / name.replace(".", "/"))]
    for name in ("envs.base", "processors", "networks", "datasets", "algs"):
        module = importlib.import_module(f"research.{name}")
    research = sys.modules["research"]
    research.envs = sys.modules["research.envs"]
    research.envs.Empty = research.envs.base.Empty
    from research.utils.config import Config

    config, rng = Config.load(str(root / "configs/metaworld/ipl_iql.yaml")), np.random.default_rng(0)
    config["env"], config["env_kwargs"] = "Empty", {"observation_shape": (39,), "action_low": -1.0, "action_high": 1.0,
                                                    "action_shape": (4,)}  # fmt: skip
    config["trainer_kwargs"]["eval_fn"] = None
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        obs, action = rng.normal(size=(2, 4000, 25, 39)), rng.uniform(-1, 1, (2, 4000, 25, 4))
        np.savez(file, obs_1=obs[0], obs_2=obs[1], action_1=action[0], action_2=action[1],
                 label=rng.integers(0, 2, 4000).astype(np.float32))  # fmt: skip
        file.flush()
        config["dataset_kwargs"]["feedback_kwargs"]["path"] = file.name
        config = config.parse()
        model, trainer = config.get_model(device="cpu"), config.get_trainer()
        trainer.set_model(model)
        batches = iter(trainer.train_dataloader)
    model.setup_optimizers()
    model.setup_schedulers()
    model.setup()
    model.train()
    step = 0

    def run(n: int) -> None:
        nonlocal step
        for _ in range(n):
            model.train_step(model.format_batch(next(batches)), step, 200_000)
            step += 1

    return run, 1


PEERS = {"unifloral": unifloral, "JAX-CORL": jax_corl, "CORL": corl, "inverse-preference-learning": original}

if __name__ == "__main__":
    _, folder, name, *numbers = sys.argv
    del sys.argv[1:]  # JAX-CORL reads it
    with redirect_stdout(sys.stderr):
        run, updates = PEERS[name](Path(folder) / name, *map(int, numbers))
    serve(run, updates)
