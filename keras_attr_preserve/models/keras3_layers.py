"""Makes the `tf_keras` layer equal to a Keras 3 layer's settings.

Most settings have the same name in both. A setting that `tf_keras` does not
know is dropped only if its value has no effect. All others are errors.
"""

import inspect
from typing import Any

from keras_attr_preserve.compat import keras, tf

__all__ = [
    "Keras3Activation",
    "make_layer",
    "make_operation",
    "tensor_arguments",
]


_FUNCTIONS = {
    # relu6(x + 3) / 6, https://arxiv.org/abs/1905.02244; tf_keras's own
    # hard_sigmoid is clip(x / 5 + 1 / 2, 0, 1).
    "hard_sigmoid": lambda x: tf.nn.relu6(x + 3.0) / 6.0,
    "hard_silu": lambda x: x * tf.nn.relu6(x + 3.0) / 6.0,
    "log_softmax": tf.nn.log_softmax,
    # By its tanh formula, https://arxiv.org/abs/1606.08415.
    "gelu_approximate": lambda x: tf.nn.gelu(x, approximate=True),
}


@keras.utils.register_keras_serializable("keras_attr_preserve")
class Keras3Activation:
  """A Keras 3 activation that tf_keras lacks or defines differently.

  `load_model` knows it. To load an .h5 file by Keras itself, give it as the
  custom object "Keras3Activation". It is an object, because tf_keras 2.21
  cannot load foreign functions from an .h5 file.
  """

  def __init__(self, name: str):
    """Takes the name of a Keras 3 activation, or "gelu_approximate"."""
    if name not in _FUNCTIONS:
      raise ValueError(f"name must be one of {list(_FUNCTIONS)}; got {name!r}.")
    self.name = name

  def __call__(self, x: tf.Tensor) -> tf.Tensor:
    """Applies the activation elementwise, or to the last axis."""
    return _FUNCTIONS[self.name](x)

  def get_config(self) -> dict[str, str]:
    """Returns the arguments of the constructor."""
    return {"name": self.name}

  @classmethod
  def from_config(cls, config: dict[str, str]) -> "Keras3Activation":
    """Makes the activation again."""
    return cls(**config)


_SAME = ("elu", "exponential", "gelu", "linear", "mish", "relu", "selu",
         "sigmoid", "softmax", "softplus", "softsign", "tanh")
_RENAMED_ACTIVATIONS = {"silu": "swish", "swish": "swish"}
# Settings unknown to tf_keras, with the values that have no effect.
_NEUTRAL = {
    "antialias": (False,), "bounding_box_format": (None,),
    "data_format": ("channels_last", None), "factor": (None,),
    "fill_mode": ("constant",), "fill_value": (0.0,),
    "flash_attention": (None, False), "input_axes": (None,),
    "lora_alpha": (None,), "lora_rank": (None,), "output_axes": (None,),
    "pad_to_aspect_ratio": (False,), "quantization_config": (None,),
    "rms_scaling": (False,),
    "seed": (None,), "sliding_window": (None,), "use_cudnn": ("auto", False),
    "use_gate": (False,), "value_range": ((0, 255),),
    "zero_output_for_mask": (False,),
}
_RENAMED = {("LeakyReLU", "negative_slope"): "alpha"}
# They hold code, tables of words or a state that get_weights leaves out.
_REFUSED = ("Lambda", "TFSMLayer", "RNN", "StackedRNNCells", "StringLookup",
            "IntegerLookup", "TextVectorization", "Hashing", "HashedCrossing",
            "Discretization", "CategoryEncoding", "SpectralNormalization",
            "RandomCrop")  # tf_keras's RandomCrop also resizes small images.
_MERGES = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")


def make_layer(data: dict[str, Any]) -> keras.layers.Layer:
  """Makes the `tf_keras` layer equal to a serialized Keras 3 layer.

  Args:
    data: the layer's entry in Keras 3's `get_config()` of the model.

  Returns:
    A new layer of the same name, not built.

  Raises:
    ValueError: the layer cannot be converted; the message says why.
  """
  kind = data["class_name"]
  if data.get("module") != "keras.layers" or data.get("registered_name"):
    raise ValueError("it is no layer of Keras's own")
  make = getattr(keras.layers, kind, None)
  if make is None or kind in _REFUSED:
    raise ValueError("tf_keras has no equal layer")
  known = _parameters(make)
  settings = {}
  for key, value in data["config"].items():
    name = _RENAMED.get((kind, key), key)
    if name in known:
      settings[name] = _value(key, value)
    elif _plain(value) not in _NEUTRAL.get(key, ()):
      raise ValueError(f"tf_keras knows no {key}={value!r}")
  if kind == "Activation" and isinstance(
      settings["activation"], keras.layers.Layer):
    # Makes one layer, because quantization-aware training knows ReLU(6).
    config = settings.pop("activation").get_config()
    kind = {"relu6": "ReLU", "leaky_relu": "LeakyReLU"}.get(
        data["config"]["activation"])
    if kind is not None:
      return getattr(keras.layers, kind)(**{**config, **settings})
    raise ValueError("its activation is a layer")
  return make(**settings)


def _activation(name: str) -> Any:
  """Converts the name of a Keras 3 activation to a tf_keras activation."""
  if name in _SAME:
    return name
  if name in _RENAMED_ACTIVATIONS:
    return _RENAMED_ACTIVATIONS[name]
  if name == "relu6":
    return keras.layers.ReLU(6.0)
  if name == "leaky_relu":
    return keras.layers.LeakyReLU(alpha=0.2)  # Keras 3's default slope.
  name = name.replace("hard_swish", "hard_silu")
  if name in _FUNCTIONS:
    return Keras3Activation(name)
  raise ValueError(f"tf_keras has no activation {name!r}")


def make_operation(data: dict[str, Any]) -> keras.layers.Layer:
  """Makes the `tf_keras` layer equal to a Keras 3 operation, such as `x + y`.

  Args:
    data: the operation's entry in Keras 3's config, with its `inbound_nodes`.

  Returns:
    A layer of the same name, to be called on the operation's tensors.

  Raises:
    ValueError: the operation cannot be converted; the message says why.
  """
  kind, config = data["class_name"], dict(data["config"])
  if len(data["inbound_nodes"]) != 1 or data["inbound_nodes"][0]["kwargs"]:
    raise ValueError("tf_keras has no equal layer")
  arguments = data["inbound_nodes"][0]["args"]
  tensors = tensor_arguments(arguments)
  dtype = tensors[0]["dtype"]
  config["dtype"] = dtype if "float" in dtype else "float32"
  ranks = {len(tensor["shape"]) for tensor in tensors}
  if kind in _MERGES and len(tensors) == 2 and len(ranks) == 1:
    return getattr(keras.layers, kind)(**config)
  if kind == "Concatenate":
    return keras.layers.Concatenate(**config)
  if kind == "Mean" and ranks == {4} and _plain(config.pop("axis")) == (1, 2):
    return keras.layers.GlobalAveragePooling2D(**config)
  layer = _rescaling(kind, arguments, config) or _activation_of(kind, config)
  if layer is None:
    raise ValueError("tf_keras has no equal layer")
  return layer


def tensor_arguments(arguments: Any) -> list[dict[str, Any]]:
  """Lists the tensors among a node's arguments, in order.

  Args:
    arguments: the `args` or `kwargs` of a serialized node.

  Returns:
    For each tensor its `shape`, `dtype` and `keras_history`.
  """
  if isinstance(arguments, dict):
    if arguments.get("class_name") == "__keras_tensor__":
      return [arguments["config"]]
    arguments = list(arguments.values())
  if not isinstance(arguments, (list, tuple)):
    return []
  return [tensor for argument in arguments
          for tensor in tensor_arguments(argument)]


def _rescaling(
    kind: str, arguments: list[Any], config: dict[str, Any],
) -> keras.layers.Layer | None:
  """Makes the layer of arithmetic between a tensor and a number."""
  numbers = [argument for argument in arguments
             if isinstance(argument, (int, float))]
  if len(numbers) + 1 != len(arguments):
    return None
  number = numbers[0] if numbers else None
  number_first = bool(numbers) and arguments[0] is number
  if kind == "Negative":
    scale, offset = -1.0, 0.0
  elif kind == "Add":
    scale, offset = 1.0, number
  elif kind == "Subtract":
    scale, offset = (-1.0, number) if number_first else (1.0, -number)
  elif kind == "Multiply":
    scale, offset = number, 0.0
  elif kind in ("Divide", "TrueDivide") and not number_first:
    scale, offset = 1 / number, 0.0
  else:
    return None
  return keras.layers.Rescaling(scale, offset, **config)


def _activation_of(
    kind: str, config: dict[str, Any]) -> keras.layers.Layer | None:
  """Makes the layer of an activation called as a function."""
  layers = keras.layers
  if kind == "LeakyRelu":
    return layers.LeakyReLU(alpha=config.pop("negative_slope"), **config)
  if kind == "Elu":
    return layers.ELU(**config)
  if kind == "Softmax":
    return layers.Softmax(**config)
  if kind == "LogSoftmax" and config.pop("axis") != -1:
    return None
  if kind == "Gelu" and config.pop("approximate"):
    return layers.Activation(Keras3Activation("gelu_approximate"), **config)
  names = {"Relu": "relu", "Relu6": "relu6", "Silu": "silu", "Selu": "selu",
           "HardSigmoid": "hard_sigmoid", "HardSilu": "hard_silu",
           "Sigmoid": "sigmoid", "Tanh": "tanh", "Softplus": "softplus",
           "Softsign": "softsign", "LogSoftmax": "log_softmax",
           "Gelu": "gelu", "Exp": "exponential"}
  if kind not in names:
    return None
  if kind in ("Relu", "Relu6"):
    return layers.ReLU(6.0 if kind == "Relu6" else None, **config)
  return layers.Activation(_activation(names[kind]), **config)


def _parameters(make: type) -> set[str]:
  """Names the arguments of a class's constructor and of its parents'."""
  names = {"name", "trainable", "dtype"}
  for parent in make.mro():
    if "__init__" in vars(parent) and parent is not object:
      names |= set(inspect.signature(parent.__init__).parameters)
  return names - {"self", "kwargs", "args"}


def _value(key: str, value: Any) -> Any:
  """Converts one setting for the `tf_keras` constructor."""
  if key == "dtype":
    return _dtype(value)
  if key.endswith("activation") and isinstance(value, str):
    return _activation(value)
  if not isinstance(value, dict):
    return value
  module, kind = value.get("module"), value.get("class_name")
  if module == "keras.layers":
    return make_layer(value)
  if module == "keras.random":
    return value["config"]["seed"]
  group = str(module).removeprefix("keras.")
  if group in ("initializers", "regularizers", "constraints"):
    make = getattr(getattr(keras, group), str(kind), None)
    if make is not None:
      return make(**{name: _value(name, setting) for name, setting in
                     value["config"].items() if name in _parameters(make)
                     or setting not in _NEUTRAL.get(name, ())})
  raise ValueError(f"its {key} is {kind or value!r}, no object of Keras's own "
                   "that tf_keras has too")


def _dtype(value: Any) -> str:
  """Returns the name of a dtype policy."""
  if isinstance(value, str):
    return value
  if value["class_name"] != "DTypePolicy":
    raise ValueError(f"tf_keras has no {value['class_name']}")
  return value["config"]["name"]


def _plain(value: Any) -> Any:
  """Turns a list into a tuple, for comparisons."""
  return tuple(value) if isinstance(value, list) else value
