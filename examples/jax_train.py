"""A click model: the network and its gradients in JAX, the embedding tables in mpembed.

Arrays pass between the two through DLPack, without a copy where JAX accepts their alignment.
"""

import jax
import jax.numpy as jnp
import numpy as np

import mpembed as mpe
from mpembed.train.data.features import dense_features
from mpembed.train.data.synthetic import generate

COLUMNS, ROWS, DIM = 26, 20_000, 16  # values are hashed into the rows of their column's table
BATCH, STEPS, WINDOW = 512, 120, 20
Params = dict[str, jax.Array]


def network(params: Params, pooled: jax.Array, dense: jax.Array) -> jax.Array:
    """Return the log odds (B,) of pooled vectors (B, 26 D) and integer features (B, 13)."""
    hidden = jax.nn.relu(jnp.concatenate([pooled, dense], axis=1) @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


@jax.jit
def step_of_network(
    params: Params, pooled: jax.Array, dense: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Params, jax.Array]:
    """Return the loss, the network after a step of SGD, and the loss's gradient for `pooled`."""

    def loss_of(params: Params, pooled: jax.Array) -> jax.Array:
        score = network(params, pooled, dense)
        return jnp.mean(jnp.logaddexp(0, score) - labels * score)

    loss, pullback = jax.vjp(loss_of, params, pooled)
    by_params, by_pooled = pullback(jnp.ones_like(loss))
    return loss, jax.tree.map(lambda p, g: p - 0.1 * g, params, by_params), by_pooled


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


def train(steps: int = STEPS) -> list[float]:
    """Train; return the loss of each batch before it was trained on."""
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig(f"column{c}", ROWS, DIM, precision="int4") for c in range(COLUMNS)],
        cache=mpe.CacheConfig(load_factor=0.05, policy="lfu"),
        optimizer=mpe.RowwiseAdagrad(lr=0.1),
    )
    params, losses = new_network(), []
    offsets = jnp.arange(COLUMNS * BATCH + 1)  # bags of one value each
    for step in range(steps):
        drawn = generate(step * BATCH, (step + 1) * BATCH)
        indices = jnp.asarray((drawn.cats % ROWS).ravel(), jnp.int32)  # table by table
        dense = jnp.asarray(dense_features(drawn.dense, shift=2) / 4)
        pooled = jnp.from_dlpack(emb.forward(indices, offsets))  # (B, 26 D)
        loss, params, grad = step_of_network(params, pooled, dense, jnp.asarray(drawn.labels))
        losses.append(float(loss))
        emb.backward(grad)
        if (step + 1) % WINDOW == 0:
            print(f"{(step + 1) * BATCH:6,} clicks  loss {np.mean(losses[-WINDOW:]):.4f}")
    print(f"tables {emb.memory_report()['ratio']:.1f}x smaller than in FP32")
    return losses


if __name__ == "__main__":
    train()
