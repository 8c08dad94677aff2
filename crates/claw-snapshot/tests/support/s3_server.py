# An S3 that checks signatures, in memory. Says where it is and what opens it; ends with its input.
# Arguments: a certificate and its key, for TLS.
import json
import logging
import os
import ssl
import sys
import threading

# What is asked before anybody has a key: the four calls below.
os.environ.update(
    INITIAL_NO_AUTH_ACTION_COUNT="4",
    AWS_ACCESS_KEY_ID="setup",
    AWS_SECRET_ACCESS_KEY="setup",
    AWS_DEFAULT_REGION="us-east-1",
)
logging.getLogger("werkzeug").disabled = True

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

context = None
if len(sys.argv) > 1:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
application = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, application, threaded=True, ssl_context=context)
threading.Thread(target=server.serve_forever, daemon=True).start()
scheme = "https" if context else "http"
verify = sys.argv[1] if context else None
url = f"{scheme}://127.0.0.1:{server.server_port}"

boto3.client("s3", endpoint_url=url, verify=verify).create_bucket(Bucket="snapshots")
iam = boto3.client("iam", endpoint_url=url, verify=verify)
iam.create_user(UserName="claw")
allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
iam.put_user_policy(UserName="claw", PolicyName="all", PolicyDocument=policy)
key = iam.create_access_key(UserName="claw")["AccessKey"]
print(url, key["AccessKeyId"], key["SecretAccessKey"], flush=True)
sys.stdin.read()
