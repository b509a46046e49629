"""Messages and methods of the daemons, made from the descriptors that the package carries.

No generated code: any protobuf runtime from 3.20 on reads the descriptors, whatever made them.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_files = descriptor_pb2.FileDescriptorSet.FromString(
    resources.files(__package__).joinpath("protos.binpb").read_bytes()
)
_pool = descriptor_pool.DescriptorPool()
for _file in _files.file:
    _pool.AddSerializedFile(_file.SerializeToString())
# Its name since protobuf 4.22, and before.
_class_of = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory(_pool).GetPrototype


def message(name: str) -> Any:
    """Class of a message by its full name, e.g. "reprise.rollout.v1.Job"."""
    return _class_of(_pool.FindMessageTypeByName(name))


class Service:
    """One attribute a method of a service, over a channel of grpc or grpc.aio."""

    def __init__(self, channel: Any, package: str, name: str) -> None:
        for file in (file for file in _files.file if file.package == package):
            for method in next(service for service in file.service if service.name == name).method:
                sides = [method.client_streaming, method.server_streaming]
                call = getattr(channel, "_".join("stream" if side else "unary" for side in sides))
                request, answer = message(method.input_type[1:]), message(method.output_type[1:])
                made = call(
                    f"/{package}.{name}/{method.name}",
                    request_serializer=request.SerializeToString,
                    response_deserializer=answer.FromString,
                )
                setattr(self, method.name, made)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the service has no method {name}")


ROLLOUT = "reprise.rollout.v1"
SANDBOX = "reprise.sandbox.v1"
# A record is as long as its trajectory.
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]


class RepriseError(Exception):
    """A request that a daemon refused: `code` as gRPC names it, and the daemon's one line."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


def error_of(error: Any) -> RepriseError:
    return RepriseError(error.code().name, error.details() or "")
