"""A click model: the network is JAX's, the tables are mpembed's, and a step is one program.

Lookup and update run inside `jax.jit`; docs/jax.md explains the state that goes through each step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mpembed as mpe
from mpembed.jax import JitCollection
from mpembed.train.data.features import dense_features
from mpembed.train.data.synthetic import generate

COLUMNS, ROWS, DIM = 26, 20_000, 16  # values are hashed into the rows of their column's table
BATCH, STEPS, WINDOW = 512, 120, 20
Params = dict[str, jax.Array]


def network(params: Params, pooled: jax.Array, dense: jax.Array) -> jax.Array:
    """Return the log odds (B,) of pooled vectors (B, 26 D) and integer features (B, 13)."""
    hidden = jax.nn.relu(jnp.concatenate([pooled, dense], axis=1) @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def new_network(width: int = 64) -> Params:
    """Draw the weights of the network."""
    inputs = COLUMNS * DIM + 13
    first, second = jax.random.split(jax.random.key(0))
    return {
        "w1": jax.random.normal(first, (inputs, width)) * inputs**-0.5,
        "b1": jnp.zeros(width),
        "w2": jax.random.normal(second, (width,)) * width**-0.5,
        "b2": jnp.zeros(()),
    }


def step_of(emb: JitCollection) -> Any:
    """Return the compiled step: (network, state, batch) -> (loss, network, state)."""
    offsets = np.arange(COLUMNS * BATCH + 1, dtype=np.int32)  # bags of one value each

    @jax.jit
    def step(params: Params, state: Any, indices: Any, dense: Any, labels: Any) -> Any:
        def loss_of(params: Params, state: Any) -> jax.Array:
            pooled = emb.lookup(state, indices, offsets)  # (B, 26 D)
            score = network(params, pooled, dense)
            return jnp.mean(jnp.logaddexp(0, score) - labels * score)

        # The backward updates the tables; the gradient of the state is the next state.
        loss, (grads, state) = jax.value_and_grad(loss_of, argnums=(0, 1))(params, state)
        return loss, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state

    return step


def train(steps: int = STEPS) -> list[float]:
    """Train; return the loss of each batch before it was trained on."""
    tables = mpe.EmbeddingBagCollection(
        [mpe.TableConfig(f"column{c}", ROWS, DIM, precision="int4") for c in range(COLUMNS)],
        cache=mpe.CacheConfig(load_factor=0.05, policy="lfu"),
        optimizer=mpe.RowwiseAdagrad(lr=0.1),
    )
    emb = JitCollection(tables)
    step, params, state, losses = step_of(emb), new_network(), emb.state(), []
    for number in range(steps):
        drawn = generate(number * BATCH, (number + 1) * BATCH)
        indices = (drawn.cats % ROWS).ravel().astype(np.int32)  # table by table
        dense = dense_features(drawn.dense, shift=2) / 4
        loss, params, state = step(params, state, indices, dense, drawn.labels)
        losses.append(float(loss))
        if (number + 1) % WINDOW == 0:
            print(f"{(number + 1) * BATCH:6,} clicks  loss {np.mean(losses[-WINDOW:]):.4f}")
    trained = emb.collection(state)  # which the last step has trained
    print(f"tables {trained.memory_report()['ratio']:.1f}x smaller than in FP32")
    return losses


if __name__ == "__main__":
    train()
