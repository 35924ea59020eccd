"""A gRPC server in this process that speaks Triton's protocol and fails on demand, for what a real one cannot be made to do."""

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import orjson
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.serving.handmade import FEATURES, ROUTE


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers score 0, 1, 2, ... as version `version`; the next `failures` inferences get a status and words instead."""

    def __init__(self) -> None:
        self.version, self.features = 1, FEATURES
        self.failures: list[tuple[grpc.StatusCode, str]] = []
        self.inferences = 0
        self.models: list[str] = []
        self.request_ids: list[str] = []
        self.opens_memory = False  # as a server on another host
        self.regions: list[str] = []
        self.let_go: list[str] = []
        self.in_use = 0  # so many more times it does not let go of a region
        self.hold = threading.Event()
        self.hold.set()

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.inferences += 1
        self.models.append(request.model_name)
        self.request_ids.append(request.id)
        self.regions.append(request.inputs[0].parameters["shared_memory_region"].string_param)
        self.hold.wait(10)
        if self.failures:
            context.abort(*self.failures.pop(0))
        candidates = next(entry.shape[0] for entry in request.inputs if entry.name == "cand_ids")
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=str(self.version))
        for name, kind, array in (
            ("score", "FP32", np.arange(candidates, dtype=np.float32)),
            ("routed", "BOOL", np.ones(candidates, bool)),
        ):
            answer.outputs.add(name=name, datatype=kind, shape=[candidates])
            answer.raw_output_contents.append(array.tobytes())
        return answer

    def ModelConfig(self, request: Any, context: Any) -> Any:
        answer = service_pb2.ModelConfigResponse()
        schema = {
            "version": self.version,
            "digest": f"d{self.version}",
            "features": self.features.model_dump(),
            "route": ROUTE.model_dump(),
        }
        answer.config.parameters["schema"].string_value = orjson.dumps(schema).decode()
        return answer

    def SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:
        return service_pb2.SystemSharedMemoryStatusResponse()

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        if self.opens_memory:
            return service_pb2.SystemSharedMemoryRegisterResponse()
        return context.abort(grpc.StatusCode.INTERNAL, f"Unable to open shared memory region: '{request.key}'")

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        if self.in_use:
            self.in_use -= 1
            context.abort(grpc.StatusCode.INTERNAL, f"Cannot unregister shared memory region '{request.name}', it is currently in use.")
        self.let_go.append(request.name)
        return service_pb2.SystemSharedMemoryUnregisterResponse()


@contextmanager
def fake_triton() -> Iterator[tuple[FakeTriton, str]]:
    """The server and its host:port."""
    fake, server = FakeTriton(), grpc.server(futures.ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield fake, f"127.0.0.1:{port}"
    finally:
        fake.hold.set()
        server.stop(0).wait()
