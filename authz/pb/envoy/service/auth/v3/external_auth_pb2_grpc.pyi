from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from authz.pb.envoy.service.auth.v3 import external_auth_pb2

class AuthorizationStub:
    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...
    Check: Callable[..., Any]

class AuthorizationServicer:
    def Check(self, request: external_auth_pb2.CheckRequest, context: Any) -> external_auth_pb2.CheckResponse | Awaitable[external_auth_pb2.CheckResponse]: ...

def add_AuthorizationServicer_to_server(
    servicer: AuthorizationServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
