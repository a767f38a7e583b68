"""A pretrained network that is quick to compile, for tests of what is trained around it."""

from contextlib import contextmanager

import keras
import pytest

from cmlearn import efficientnet

LAST = "block2_project_conv_add"  # after one residual sum; 24 features


@contextmanager
def first_blocks_only():
    """Let `EfficientNetLite` return its first three blocks, with their weights, under its name."""
    whole_network = efficientnet.EfficientNetLite

    def first_blocks(*arguments, **settings):
        whole = whole_network(*arguments, **settings)
        features = keras.layers.GlobalAveragePooling2D(name="features")(
            whole.get_layer(LAST).output
        )
        return keras.Model(whole.input, features, name=whole.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet, "EfficientNetLite", first_blocks)
        yield
