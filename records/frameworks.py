"""Keras's and Flax's norms far from zero, and what else the book says of them.

Neither is among the book's requirements. In an environment of its own, which keeps the
result as records/frameworks.json within a minute:

    python -m venv /tmp/frameworks
    /tmp/frameworks/bin/pip install keras flax torch
    /tmp/frameworks/bin/python records/frameworks.py

`far_from_zero` has the largest |error| against float64 of each layer in training, one
number a sample: float32, shape (64, 256), mean 10,000, standard deviation 1, seeds 0 to
3, group norm with 8 groups. A value that is not a number is written as "nan".
"""

import json
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

SEEDS, SHAPE, GROUPS, MEAN = range(4), (64, 256), 8, 1e4
BACKENDS = ("torch", "numpy", "jax")


def standardized(x, axes, eps):
    """Return x less its mean, over its deviation, in float64."""
    x = x.astype(np.float64)
    centered = x - x.mean(axes, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axes, keepdims=True) + eps)


def errors(layer, norm, eps):
    """Return the largest |error| of a function of (64, 256), one number a sample."""
    worst = []
    for seed in SEEDS:
        x = MEAN + np.random.default_rng(seed).normal(size=SHAPE)
        x = x.astype(np.float32)
        if norm == "GN":
            wanted = standardized(x.reshape(SHAPE[0], GROUPS, -1), (2,), eps)
            wanted = wanted.reshape(SHAPE)
        else:
            wanted = standardized(x, (0,) if norm == "BN" else (1,), eps)
        error = float(abs(layer(x) - wanted).max())
        worst.append("nan" if np.isnan(error) else float(f"{error:.4g}"))
    return worst


def keras_norms():
    """Measure the layers of Keras on the backend that KERAS_BACKEND names."""
    import keras
    from keras import layers, ops

    def in_training(layer):
        return lambda x: ops.convert_to_numpy(layer(ops.array(x), training=True))

    made = {
        "BN": layers.BatchNormalization(epsilon=1e-3),
        "LN": layers.LayerNormalization(epsilon=1e-3),
        "GN": layers.GroupNormalization(GROUPS, epsilon=1e-3),
    }
    far = {norm: errors(in_training(made[norm]), norm, 1e-3) for norm in made}
    one = layers.BatchNormalization()
    one_value = ops.convert_to_numpy(one(ops.array([[3.0, 5.0]]), training=True))
    frozen = layers.BatchNormalization()
    frozen.trainable = False
    x = np.random.default_rng(0).normal(3, 2, (8, 4)).astype(np.float32)
    stays = ops.convert_to_numpy(frozen(ops.array(x), training=True))
    try:
        layers.BatchNormalization(synchronized=True)
        synchronized = "made"
    except ValueError as error:
        synchronized = f"ValueError: {str(error).splitlines()[0]}"
    plain = layers.BatchNormalization()
    return {
        "version": keras.__version__,
        "defaults": {"epsilon": plain.epsilon, "momentum": plain.momentum},
        "far_from_zero": far,
        "one_value": one_value.tolist(),
        "frozen_uses_running": bool(np.allclose(stays, x / np.sqrt(1.001), atol=1e-4)),
        "synchronized": synchronized,
    }


def flax_norms():
    """Measure the layers of Flax's nnx, with the default variance and the slow one."""
    import jax
    from flax import nnx

    record = {"version": version("flax"), "jax": jax.__version__}
    for fast in (True, False):
        settings = {"use_fast_variance": fast, "epsilon": 1e-6, "rngs": nnx.Rngs(0)}
        made = {
            "BN": nnx.BatchNorm(SHAPE[1], use_running_average=False, **settings),
            "LN": nnx.LayerNorm(SHAPE[1], **settings),
            "GN": nnx.GroupNorm(SHAPE[1], num_groups=GROUPS, **settings),
        }
        record["fast" if fast else "slow"] = {
            norm: errors(lambda x, norm=norm: np.asarray(made[norm](x)), norm, 1e-6)
            for norm in made
        }
    plain = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    record["defaults"] = {
        "epsilon": plain.epsilon,
        "momentum": plain.momentum,
        "use_fast_variance": plain.use_fast_variance,
    }
    one = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    record["one_value"] = np.asarray(one(np.array([[3.0, 5.0]], np.float32))).tolist()
    return record


def main():
    """Run each backend in a process of its own and keep what all of them say."""
    if len(sys.argv) > 1:
        print(json.dumps(flax_norms() if sys.argv[1] == "flax" else keras_norms()))
        return
    results = {}
    for name in (*BACKENDS, "flax"):
        backend = {} if name == "flax" else {"KERAS_BACKEND": name}
        environment = os.environ | backend | {"JAX_PLATFORMS": "cpu"}
        command = [sys.executable, __file__, name]
        ran = subprocess.run(command, env=environment, capture_output=True, check=True)
        key = name if name == "flax" else f"keras on {name}"
        results[key] = json.loads(ran.stdout.decode().splitlines()[-1])
    record = {
        "command": "python records/frameworks.py",
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": version("torch"),
        "results": results,
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
