"""Keras on torch, on a step that computes; its batch size stays."""

import os
import time

os.environ["KERAS_BACKEND"] = "torch"

import keras
from data import LENGTH, NUM_WORDS, Sentences

import autotune


class Clock(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.begin, self.steps = time.time(), 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.time() - self.begin
        print(f"epoch {epoch}: {seconds:.3f} s, {self.steps} steps", flush=True)


if __name__ == "__main__":
    words = keras.Input((LENGTH,), dtype="int64")
    embedded = keras.layers.Embedding(NUM_WORDS, 64)(words)
    hidden = keras.layers.Dense(256, "relu")(keras.layers.Flatten()(embedded))
    model = keras.Model(words, keras.layers.Dense(2)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    config = autotune.load_config(
        "best_config.yaml", default=autotune.ThroughputConfig(batch_size=8)
    )
    loader = config.dataloader(Sentences(), shuffle=True)
    epochs = int(os.environ.get("EPOCHS", 3))
    model.fit(autotune.steps(loader), epochs=epochs, verbose=0, callbacks=[Clock()])
