"""The exporter's exceptions."""


class UnsupportedError(Exception):
    """The function cannot be converted to ONNX.

    Raised by `to_onnx` for a JAX primitive, a variant of a primitive, an element type, or a use of symbolic sizes that
    has no translation. The message is one line: what is not supported, the module it is in, such as
    `Net/Block_2/Conv_1`, and what to change.
    """


class VerificationError(Exception):
    """An ONNX file failed its verification and must not be used.

    Raised by `export_workdir` if the file is not valid ONNX, breaks a promise about its structure (operator set, types
    of inputs and outputs, explicit padding), differs from JAX by more than the tolerance in onnxruntime, or loses more
    accuracy in 8 bits than is allowed. The message is one line: the check that failed, by how much, and, if numbers
    differ, the first node whose value is wrong.
    """
