//! A client that is not ours (Python's grpcio, reflection only) drives the API; everything wrong that it
//! may send is refused precisely and leaves no trace.

use anyhow::{Context, Result, bail};
use claw_tests::programs::{self, PATIENCE};
use claw_tests::{Rig, ThirdParty, rig};
use serde_json::{Value, json};

const INSTANCES: &str = "claw.fleet.v1.InstanceService";
const HOSTS: &str = "claw.fleet.v1.HostService";

#[test]
fn a_third_party_client_drives_the_api_from_reflection_alone() -> Result<()> {
    let rig = Rig::start("client")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let python = programs::variable(programs::PYTHON)?;
    let mut client = rig.step("Python connects with the operator's identity", || {
        ThirdParty::start(&python, fleet, &fleet.identity())
    })?;
    rig.step("reflection names every service, and each is healthy", || {
        let answer = client.ask(&json!({ "services": true }))?;
        let services = rig::list(&answer["response"])?;
        for name in ["Host", "Instance", "JoinToken", "Audit"] {
            let name = format!("claw.fleet.v1.{name}Service");
            assert!(services.contains(&json!(name)), "{services:?} lacks {name}");
            let health = client.ask(&json!({ "health": name }))?;
            assert_eq!(health["response"], "SERVING", "{health}");
        }
        let health = client.ask(&json!({ "health": "" }))?;
        assert_eq!(health["response"], "SERVING", "{health}");
        let health = client.ask(&json!({ "health": "no.such.Service" }))?;
        assert_eq!(health["error"]["code"], "NOT_FOUND", "{health}");
        Ok(())
    })?;
    let good = |name: &str| create(name, host.name(), &rig.image().reference);
    rig.step("validate_only changes nothing; request_id makes a retry harmless", || {
        let mut request = good("demo");
        request["validateOnly"] = json!(true);
        client.call(&format!("{INSTANCES}/CreateInstance"), &request)?;
        assert_eq!(names(&mut client)?, Vec::<String>::new());
        let mut request = good("demo");
        request["requestId"] = json!("5c5a1c3e-7d9e-4a39-9c5a-1f0e6f3c2b11");
        let first = client.call(&format!("{INSTANCES}/CreateInstance"), &request)?.1;
        let again = client.call(&format!("{INSTANCES}/CreateInstance"), &request)?.1;
        assert_eq!(first["instance"]["uid"], again["instance"]["uid"]);
        request["instanceId"] = json!("other");
        let error = refused(&mut client, "CreateInstance", &request)?;
        assert_eq!(error["code"], "INVALID_ARGUMENT", "{error}");
        assert_eq!(names(&mut client)?, ["demo"]);
        Ok(())
    })?;
    rig.step("it is watched until it runs, and read", || {
        fleet.until_phase("demo", "running", PATIENCE)?;
        let watch = json!({
            "method": format!("{INSTANCES}/WatchInstances"),
            "request": { "names": ["instances/demo"] },
            "limit": 2,
        });
        let answer = client.ask(&watch)?;
        let kinds: Vec<_> = rig::list(&answer["response"])?.iter().map(|m| &m["kind"]).collect();
        assert_eq!(kinds, ["WATCH_KIND_CURRENT", "WATCH_KIND_SYNCED"], "{answer}");
        let got = get(&mut client, "demo")?;
        assert_eq!(got["status"]["phase"], "PHASE_RUNNING", "{got}");
        assert_eq!(got["spec"]["secrets"]["SECRET_KEY"], "", "a secret is shown: {got}");
        Ok(())
    })?;
    rig.step("lists come in pages", || {
        for name in ["page-a", "page-b"] {
            let mut request = good(name);
            request["instance"]["spec"]["runState"] = json!("RUN_STATE_STOPPED");
            client.call(&format!("{INSTANCES}/CreateInstance"), &request)?;
        }
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let request = json!({ "pageSize": 1, "pageToken": token });
            let page = client.call(&format!("{INSTANCES}/ListInstances"), &request)?.1;
            let listed = rig::list(&page["instances"])?;
            assert_eq!(listed.len(), 1, "{page}");
            seen.push(listed[0]["name"].clone());
            match page["nextPageToken"].as_str() {
                Some(next) if !next.is_empty() => token = next.to_owned(),
                _ => break,
            }
        }
        assert_eq!(seen, ["instances/demo", "instances/page-a", "instances/page-b"]);
        Ok(())
    })?;
    rig.step("an update names its fields and the etag that it has seen", || {
        let old = get(&mut client, "demo")?;
        let update = |cpu: u64, etag: &Value| {
            json!({
                "instance": {
                    "name": "instances/demo",
                    "etag": etag,
                    "spec": { "resources": { "memoryBytes": "268435456", "cpuMillis": cpu.to_string(), "pidsLimit": "256" } },
                },
                "updateMask": "spec.resources",
            })
        };
        client.call(&format!("{INSTANCES}/UpdateInstance"), &update(800, &old["etag"]))?;
        let new = get(&mut client, "demo")?;
        assert_eq!(new["spec"]["resources"]["cpuMillis"], "800");
        assert_eq!(new["spec"]["image"], old["spec"]["image"]);
        let error = refused(&mut client, "UpdateInstance", &update(900, &old["etag"]))?;
        assert_eq!(error["code"], "ABORTED", "{error}");
        assert_eq!(reason(&error), "STALE_ETAG", "{error}");
        assert_eq!(get(&mut client, "demo")?["spec"], new["spec"]);
        Ok(())
    })?;
    rig.step("everything wrong is refused precisely and leaves no trace", || {
        let before = stored(&mut client)?;
        bad_input(&mut client, &good)?;
        assert_eq!(stored(&mut client)?, before);
        Ok(())
    })?;
    rig.step("an image that does not exist is taken, and its host says what is wrong", || {
        // Nobody listens there: an answer without any network beyond the lab.
        let request = create("lost", host.name(), "198.51.100.1:5999/claw/none:1");
        client.call(&format!("{INSTANCES}/CreateInstance"), &request)?;
        claw_tests::fleet::until(PATIENCE, "the cause", || {
            let status = &get(&mut client, "lost")?["status"];
            let message = status["message"].as_str().unwrap_or_default();
            let said = message.contains("198.51.100.1:5999/claw/none:1");
            if said { Ok(Some(())) } else { bail!("it is {status}") }
        })?;
        client
            .call(&format!("{INSTANCES}/DeleteInstance"), &json!({ "name": "instances/lost" }))?;
        Ok(())
    })?;
    rig.step("everything is deleted", || {
        for name in ["demo", "page-a", "page-b"] {
            let request = json!({ "name": format!("instances/{name}") });
            client.call(&format!("{INSTANCES}/DeleteInstance"), &request)?;
        }
        claw_tests::fleet::until(PATIENCE, "them to be gone", || {
            let names = names(&mut client)?;
            if names.is_empty() { Ok(Some(())) } else { bail!("there are {names:?}") }
        })
    })?;
    rig.step("grpcurl sees the same", || grpcurl(&rig))
}

fn create(name: &str, host: &str, image: &str) -> Value {
    json!({
        "instanceId": name,
        "instance": {
            "host": format!("hosts/{host}"),
            "spec": {
                "image": image,
                "resources": { "memoryBytes": "268435456", "cpuMillis": "1000", "pidsLimit": "256" },
                "config": "{}",
                "secrets": { "SECRET_KEY": "the-third-party's-secret" },
                "health": { "minHealthy": "0s" },
                "stopGrace": "5s",
            },
        },
    })
}

fn get(client: &mut ThirdParty, name: &str) -> Result<Value> {
    let request = json!({ "name": format!("instances/{name}") });
    Ok(client.call(&format!("{INSTANCES}/GetInstance"), &request)?.1["instance"].clone())
}

fn names(client: &mut ThirdParty) -> Result<Vec<String>> {
    let listed = client.call(&format!("{INSTANCES}/ListInstances"), &json!({}))?.1;
    let names = listed["instances"].as_array().into_iter().flatten();
    Ok(names
        .filter_map(|i| i["name"].as_str()?.strip_prefix("instances/").map(str::to_owned))
        .collect())
}

/// Everything that a refused change could have left behind: specs, hosts, tokens, audit entries.
fn stored(client: &mut ThirdParty) -> Result<Value> {
    let mut all = serde_json::Map::new();
    for (method, field) in [
        ("InstanceService/ListInstances", "instances"),
        ("HostService/ListHosts", "hosts"),
        ("JoinTokenService/ListJoinTokens", "joinTokens"),
        ("AuditService/ListAuditEntries", "auditEntries"),
    ] {
        let request = json!({ "pageSize": 1000 });
        let mut found = client.call(&format!("claw.fleet.v1.{method}"), &request)?.1[field].clone();
        for entry in found.as_array_mut().into_iter().flatten() {
            // What a host reports moves by itself.
            entry.as_object_mut().context("no object")?.remove("status");
        }
        all.insert(field.to_owned(), found);
    }
    Ok(all.into())
}

/// The error of a call that must fail.
fn refused(client: &mut ThirdParty, method: &str, request: &Value) -> Result<Value> {
    let method =
        if method.contains('/') { method.to_owned() } else { format!("{INSTANCES}/{method}") };
    let answer = client.ask(&json!({ "method": method, "request": request }))?;
    if answer.get("error").is_none() {
        bail!("{method} took {request}: {answer}");
    }
    Ok(answer["error"].clone())
}

fn reason(error: &Value) -> &str {
    let details = error["details"].as_array().map(Vec::as_slice).unwrap_or_default();
    details.iter().find_map(|detail| detail["reason"].as_str()).unwrap_or_default()
}

/// Fields that a BadRequest names, in order.
fn fields(error: &Value) -> Vec<&str> {
    let details = error["details"].as_array().map(Vec::as_slice).unwrap_or_default();
    let violations = details.iter().filter_map(|detail| detail["fieldViolations"].as_array());
    let mut fields: Vec<&str> = violations.flatten().filter_map(|v| v["field"].as_str()).collect();
    fields.sort_unstable();
    fields
}

fn bad_input(client: &mut ThirdParty, good: &dyn Fn(&str) -> Value) -> Result<()> {
    let with = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut request = good(name);
        change(&mut request);
        request
    };
    // Every wrong field at once.
    let wrong = with("Not_A_Label", &|request| {
        let spec = &mut request["instance"]["spec"];
        spec["image"] = json!("no image at all");
        spec["env"] = json!({ "not a name": "x" });
        spec["files"] = json!({ "../outside": "x" });
        spec["hostnames"] = json!(["-bad-"]);
        spec["allowedOrigins"] = json!(["ftp://x"]);
        spec["stopGrace"] = json!("7200s");
        spec["resources"] = json!({ "memoryBytes": "1", "cpuMillis": "1000", "pidsLimit": "256" });
        request["instance"]["host"] = json!("nowhere");
    });
    let error = refused(client, "CreateInstance", &wrong)?;
    assert_eq!(error["code"], "INVALID_ARGUMENT", "{error}");
    assert_eq!(reason(&error), "INVALID_FIELDS");
    let named = fields(&error);
    for field in [
        "instance_id",
        "instance.host",
        "spec.image",
        "spec.env",
        "spec.files",
        "spec.hostnames",
        "spec.allowed_origins",
        "spec.stop_grace",
        "spec.resources.memory_bytes",
    ] {
        assert!(named.iter().any(|name| name.contains(field)), "{field} is not among {named:?}");
    }
    let check = |client: &mut ThirdParty, method: &str, request: Value, code: &str, hint: &str| {
        let error = refused(client, method, &request)?;
        assert_eq!(error["code"], code, "{method} {error}");
        assert!(error.to_string().contains(hint), "{hint:?} is not in {error}");
        Ok::<_, anyhow::Error>(())
    };
    let unknown = with("x", &|request| request["instance"]["host"] = json!("hosts/nowhere"));
    check(client, "CreateInstance", unknown, "NOT_FOUND", "hosts/nowhere")?;
    check(client, "CreateInstance", good("demo"), "ALREADY_EXISTS", "instances/demo")?;
    let both = with("x", &|request| request["instance"]["spec"]["tier"] = json!("no-such-tier"));
    check(client, "CreateInstance", both, "INVALID_ARGUMENT", "spec.tier")?;
    for (config, hint) in [
        ("{ gateway: ", "config"),
        ("{ noSuchKey: 1 }", "noSuchKey"),
        (
            "{ agents: { defaults: { model: { primary: '${NO_SUCH_VARIABLE}' } } } }",
            "NO_SUCH_VARIABLE",
        ),
    ] {
        let request = with("x", &|request| request["instance"]["spec"]["config"] = json!(config));
        check(client, "CreateInstance", request, "INVALID_ARGUMENT", hint)?;
    }
    let large = "x".repeat(512 << 10);
    let request =
        with("x", &|request| request["instance"]["spec"]["files"] = json!({ "a": large }));
    check(client, "CreateInstance", request, "INVALID_ARGUMENT", "spec")?;
    let huge = "x".repeat(24 << 20);
    let request = with("x", &|request| request["instance"]["spec"]["identity"] = json!(huge));
    let error = refused(client, "CreateInstance", &request)?;
    assert!(
        ["OUT_OF_RANGE", "RESOURCE_EXHAUSTED"].iter().any(|code| error["code"] == *code),
        "{error}"
    );
    let request = json!({ "name": "instances/nobody" });
    check(client, "GetInstance", request.clone(), "NOT_FOUND", "instances/nobody")?;
    check(client, "DeleteInstance", request.clone(), "NOT_FOUND", "instances/nobody")?;
    check(client, "StartInstance", request, "NOT_FOUND", "instances/nobody")?;
    let request = json!({ "name": "instances/demo", "etag": "stale" });
    check(client, "DeleteInstance", request.clone(), "ABORTED", "STALE_ETAG")?;
    check(client, "StopInstance", request, "ABORTED", "STALE_ETAG")?;
    check(client, "GetInstance", json!({ "name": "demo" }), "INVALID_ARGUMENT", "name")?;
    check(
        client,
        "ListInstances",
        json!({ "pageToken": "forged" }),
        "INVALID_ARGUMENT",
        "page_token",
    )?;
    check(client, "ListInstances", json!({ "pageSize": -1 }), "INVALID_ARGUMENT", "page_size")?;
    let moved = json!({
        "instance": { "name": "instances/demo", "host": "hosts/other" },
        "updateMask": "spec.noSuchField",
    });
    let error = refused(client, "UpdateInstance", &moved)?;
    assert_eq!(fields(&error), ["instance.host", "update_mask"], "{error}");
    let request = json!({ "name": "hosts/h1" });
    check(client, &format!("{HOSTS}/DeleteHost"), request, "FAILED_PRECONDITION", "hosts/h1")?;
    // Bytes that are no message: cut off in the midst of a field, and a length beyond all bounds.
    for raw in ["0a40696e", "0affffffffffffffff7f", "ffffffff", "1a0408011801"] {
        let line = json!({ "method": format!("{INSTANCES}/CreateInstance"), "raw": raw });
        let answer = client.ask(&line)?;
        let code = &answer["error"]["code"];
        let refused = ["INVALID_ARGUMENT", "INTERNAL"].iter().any(|known| code == *known);
        assert!(refused, "{raw}: {answer}");
    }
    // The connection and the server are as good as before.
    get(client, "demo").map(|_| ())
}

/// grpcurl, where the machine has it.
fn grpcurl(rig: &Rig) -> Result<()> {
    let identity = rig.fleet().identity();
    let file = |name: &str| identity.join(name);
    let run = |arguments: &[&str]| {
        let mut grpcurl = claw_lab::command("grpcurl");
        grpcurl.arg("-cacert").arg(file("ca.pem"));
        grpcurl.arg("-cert").arg(file("cert.pem")).arg("-key").arg(file("key.pem"));
        grpcurl.arg(rig.fleet().endpoint().to_string()).args(arguments);
        grpcurl.output()
    };
    match run(&["list"]) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            rig.note("  grpcurl is not on this machine: not tried");
            Ok(())
        }
        listed => {
            let listed = listed?;
            let text = String::from_utf8_lossy(&listed.stdout).into_owned();
            assert!(text.contains(INSTANCES), "{text}{}", String::from_utf8_lossy(&listed.stderr));
            let hosts = run(&[&format!("{HOSTS}/ListHosts")])?;
            let text = String::from_utf8_lossy(&hosts.stdout).into_owned();
            assert!(text.contains("hosts/h1"), "{text}");
            Ok(())
        }
    }
}
