"""A third-party client: knows nothing but an address, an identity and the server's reflection.

Reads one JSON object per line: {"method": "package.Service/Method", "request": {...}}, or with "raw" (bytes
in hexadecimal) instead of "request", or {"health": "service"}, or {"services": true}. Answers each with one line: {"sent": seconds, "response": {...}} or
{"sent": seconds, "error": {"code": ..., "message": ..., "details": [...]}}. A server stream is read
up to "limit" messages (1 by default).
"""

import json
import sys
import time

import grpc
from google.protobuf import any_pb2, descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

DEADLINE_S = 30
_ = error_details_pb2  # registers the google.rpc messages


def read(path):
    with open(path, "rb") as file:
        return file.read()


def channel(endpoint, identity):
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read(f"{identity}/ca.pem"),
        private_key=read(f"{identity}/key.pem"),
        certificate_chain=read(f"{identity}/cert.pem"),
    )
    return grpc.secure_channel(endpoint, credentials)


def call(connection, pool, line):
    service_name, method_name = line["method"].split("/")
    method = pool.FindServiceByName(service_name).FindMethodByName(method_name)
    if "raw" in line:
        request = bytes.fromhex(line["raw"])
    else:
        message = message_factory.GetMessageClass(method.input_type)()
        json_format.ParseDict(line.get("request", {}), message)
        request = message.SerializeToString()
    answer = message_factory.GetMessageClass(method.output_type)
    arguments = dict(
        request_serializer=bytes,
        response_deserializer=answer.FromString,
    )
    path = "/" + line["method"]
    sent = time.time()
    if method.server_streaming:
        stream = connection.unary_stream(path, **arguments)(request, timeout=DEADLINE_S)
        messages = []
        for message in stream:
            messages.append(json_format.MessageToDict(message))
            if len(messages) >= line.get("limit", 1):
                break
        stream.cancel()
        return {"sent": sent, "response": messages}
    response = connection.unary_unary(path, **arguments)(request, timeout=DEADLINE_S)
    return {"sent": sent, "response": json_format.MessageToDict(response)}


def details(error):
    for key, value in error.trailing_metadata() or []:
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            return [json_format.MessageToDict(detail) for detail in status.details]
    return []


def answer(connection, reflection, pool, line):
    if "services" in line:
        return {"response": sorted(reflection.get_services())}
    if "health" in line:
        stub = health_pb2_grpc.HealthStub(connection)
        request = health_pb2.HealthCheckRequest(service=line["health"])
        status = stub.Check(request, timeout=DEADLINE_S).status
        return {"response": health_pb2.HealthCheckResponse.ServingStatus.Name(status)}
    return call(connection, pool, line)


def main():
    connection = channel(sys.argv[1], sys.argv[2])
    reflection = ProtoReflectionDescriptorDatabase(connection)
    pool = descriptor_pool.DescriptorPool(reflection)
    for text in sys.stdin:
        try:
            result = answer(connection, reflection, pool, json.loads(text))
        except grpc.RpcError as error:
            fault = {"code": error.code().name, "message": error.details(), "details": details(error)}
            result = {"error": fault}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
