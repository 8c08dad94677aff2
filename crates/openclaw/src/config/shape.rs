//! The shape of the parts of `openclaw.json` that a host depends on, as data.
//!
//! Source: the JSON Schema printed by `openclaw config schema`, openclaw 2026.9.6. All 44 top-level
//! keys are here; below the top level only `env`, `gateway`, `logging`, `discovery`, `telemetry` and
//! `update`, because those are what the gateway needs in order to start and what the operator
//! enforces. The rest (agents, models, channels, plugins…) is left to the gateway itself.
//!
//! It does not check anything: see the `check` module.

/// What a value may be.
#[derive(Debug)]
pub(super) enum Shape {
    /// An object whose contents are not described here.
    AnyObject,
    /// An array whose contents are not described here.
    AnyList,
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds, both included.
    Int(i64, i64),
    /// Any finite number.
    Number,
    /// A string.
    Text,
    /// A string of at least one character.
    NonEmptyText,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// The first of these that fits.
    Either(&'static [Self]),
    /// Only `false`.
    False,
    /// An array of one shape.
    List(&'static Self),
    /// An object with free keys and values of one shape.
    Map(&'static Self),
    /// An object with exactly these keys allowed.
    Object(Object),
}

/// The keys of an object.
#[derive(Debug)]
pub(super) struct Object {
    /// Keys and the shapes of their values.
    pub(super) keys: &'static [(&'static str, Shape)],
    /// Keys that must be present.
    pub(super) required: &'static [&'static str],
    /// Whether other keys are refused.
    pub(super) closed: bool,
}

/// The whole document.
pub(super) const DOCUMENT: Object = Object {
    keys: &[
        ("$schema", Shape::Text),
        ("accessGroups", Shape::AnyObject),
        ("acp", Shape::AnyObject),
        ("agents", Shape::AnyObject),
        ("approvals", Shape::AnyObject),
        ("attachments", Shape::AnyObject),
        ("auth", Shape::AnyObject),
        ("bindings", Shape::AnyList),
        ("broadcast", Shape::AnyObject),
        ("browser", Shape::AnyObject),
        ("channels", Shape::AnyObject),
        ("cloudWorkers", Shape::AnyObject),
        ("commands", Shape::AnyObject),
        ("cron", Shape::AnyObject),
        ("desktop", Shape::AnyObject),
        ("diagnostics", Shape::AnyObject),
        ("discovery", DISCOVERY),
        ("env", ENV),
        ("gateway", GATEWAY),
        ("hooks", Shape::AnyObject),
        ("logging", LOGGING),
        ("mcp", Shape::AnyObject),
        ("memory", Shape::AnyObject),
        ("messages", Shape::AnyObject),
        ("meta", Shape::AnyObject),
        ("models", Shape::AnyObject),
        ("nodeHost", Shape::AnyObject),
        ("plugins", Shape::AnyObject),
        ("proxy", Shape::AnyObject),
        ("secrets", Shape::AnyObject),
        ("security", Shape::AnyObject),
        ("session", Shape::AnyObject),
        ("skills", Shape::AnyObject),
        ("surfaces", Shape::AnyObject),
        ("talk", Shape::AnyObject),
        ("telemetry", TELEMETRY),
        ("tools", Shape::AnyObject),
        ("transcripts", Shape::AnyObject),
        ("tts", Shape::AnyObject),
        ("ui", Shape::AnyObject),
        ("update", UPDATE),
        ("wizard", Shape::AnyObject),
        ("worktreeAcceleration", Shape::Bool),
        ("worktreeRoot", Shape::NonEmptyText),
    ],
    required: &[],
    closed: true,
};

/// The largest whole number that OpenClaw's numbers hold exactly (2^53 - 1).
const MAX: i64 = 9_007_199_254_740_991;

const PORT: Shape = Shape::Int(1, 65_535);
const COUNT: Shape = Shape::Int(0, MAX);
const POSITIVE: Shape = Shape::Int(1, MAX);
const TEXTS: Shape = Shape::List(&Shape::Text);

/// A text, or where to find one.
const SECRET: Shape = Shape::Either(&[
    Shape::Text,
    object_with(
        &["source", "provider", "id"],
        &[
            ("source", Shape::OneOf(&["env", "file", "exec", "store"])),
            ("provider", Shape::NonEmptyText),
            ("id", Shape::NonEmptyText),
        ],
    ),
]);

const SCOPES: Shape = Shape::List(&Shape::OneOf(&[
    "operator.admin",
    "operator.read",
    "operator.write",
    "operator.sessions.read",
    "operator.sessions.write",
    "operator.approvals",
    "operator.questions",
    "operator.pairing",
    "operator.talk",
    "operator.talk.secrets",
]));

const LEVEL: Shape = Shape::OneOf(&["silent", "fatal", "error", "warn", "info", "debug", "trace"]);

const fn object(keys: &'static [(&'static str, Shape)]) -> Shape {
    Shape::Object(Object { keys, required: &[], closed: true })
}

const fn object_with(
    required: &'static [&'static str],
    keys: &'static [(&'static str, Shape)],
) -> Shape {
    Shape::Object(Object { keys, required, closed: true })
}

const fn open_object(keys: &'static [(&'static str, Shape)]) -> Shape {
    Shape::Object(Object { keys, required: &[], closed: false })
}

const GATEWAY: Shape = object(&[
    ("port", PORT),
    ("mode", Shape::OneOf(&["local", "remote"])),
    ("bind", Shape::OneOf(&["auto", "lan", "loopback", "custom", "tailnet"])),
    ("customBindHost", Shape::Text),
    ("publicOrigin", Shape::Text),
    (
        "portals",
        object(&[(
            "ingress",
            object_with(&["domain", "port"], &[("domain", Shape::Text), ("port", PORT)]),
        )]),
    ),
    ("controlUi", CONTROL_UI),
    ("cliAgents", object(&[("enabled", Shape::Bool)])),
    (
        "terminal",
        object(&[
            ("enabled", Shape::Bool),
            ("shell", Shape::Text),
            ("detachedSessionTimeoutSeconds", COUNT),
        ]),
    ),
    ("auth", AUTH),
    ("roles", ROLES),
    ("trustedProxies", TEXTS),
    ("allowRealIpFallback", Shape::Bool),
    ("tools", object(&[("deny", TEXTS), ("allow", TEXTS)])),
    (
        "tailscale",
        object(&[
            ("mode", Shape::OneOf(&["off", "serve", "funnel"])),
            ("preserveFunnel", Shape::Bool),
        ]),
    ),
    ("remote", REMOTE),
    ("reload", object(&[("mode", Shape::OneOf(&["off", "hybrid"]))])),
    (
        "tls",
        open_object(&[
            ("enabled", Shape::Bool),
            ("autoGenerate", Shape::Bool),
            ("certPath", Shape::NonEmptyText),
            ("keyPath", Shape::NonEmptyText),
            ("caPath", Shape::Text),
        ]),
    ),
    ("http", HTTP),
    (
        "push",
        object(&[(
            "apns",
            object(&[("relay", object(&[("baseUrl", Shape::Text), ("timeoutMs", POSITIVE)]))]),
        )]),
    ),
    ("nodes", NODES),
]);

const CONTROL_UI: Shape = object(&[
    ("dangerouslyDisableDeviceAuth", Shape::Bool),
    ("enabled", Shape::Bool),
    ("basePath", Shape::Text),
    ("experimental", object(&[("customPlugins", Shape::Bool)])),
    ("root", Shape::Text),
    (
        "environment",
        object_with(
            &["label", "color"],
            &[
                ("label", Shape::NonEmptyText),
                (
                    "color",
                    Shape::OneOf(&[
                        "teal", "amber", "purple", "coral", "pink", "blue", "green", "red", "gray",
                    ]),
                ),
            ],
        ),
    ),
    ("communityInvite", Shape::Bool),
    ("github", object(&[("token", SECRET)])),
    ("sessionObserver", Shape::Bool),
    ("embedSandbox", Shape::OneOf(&["strict", "scripts", "trusted"])),
    ("allowExternalEmbedUrls", Shape::Bool),
    ("automaticallyFetchFavicons", Shape::Bool),
    ("allowedOrigins", TEXTS),
    ("dangerouslyAllowHostHeaderOriginFallback", Shape::Bool),
]);

const AUTH: Shape = object(&[
    ("mode", Shape::OneOf(&["none", "token", "password", "trusted-proxy"])),
    ("token", SECRET),
    ("password", SECRET),
    ("allowTailscale", Shape::Bool),
    ("identityScopes", Shape::Map(&SCOPES)),
    (
        "rateLimit",
        object(&[
            ("maxAttempts", Shape::Number),
            ("windowMs", Shape::Number),
            ("lockoutMs", Shape::Number),
            ("exemptLoopback", Shape::Bool),
        ]),
    ),
    (
        "trustedProxy",
        object_with(
            &["userHeader"],
            &[
                ("userHeader", Shape::NonEmptyText),
                ("requiredHeaders", TEXTS),
                ("allowUsers", TEXTS),
                ("allowLoopback", Shape::Bool),
                (
                    "cloudflareAccessOidc",
                    object_with(
                        &["issuer", "providerId", "githubAccountIdClaim"],
                        &[
                            ("issuer", Shape::NonEmptyText),
                            ("providerId", Shape::NonEmptyText),
                            ("githubAccountIdClaim", Shape::NonEmptyText),
                        ],
                    ),
                ),
                (
                    "deviceAutoApprove",
                    object(&[
                        ("enabled", Shape::Bool),
                        ("scopes", Shape::List(&Shape::NonEmptyText)),
                    ]),
                ),
            ],
        ),
    ),
]);

const ROLES: Shape = object_with(
    &["default", "definitions"],
    &[
        ("default", Shape::NonEmptyText),
        (
            "definitions",
            Shape::Map(&Shape::Object(Object {
                required: &["sessions", "agents", "scopes"],
                closed: true,
                keys: &[
                    (
                        "sessions",
                        object_with(
                            &["others"],
                            &[("others", Shape::OneOf(&["none", "view", "suggest", "write"]))],
                        ),
                    ),
                    ("sandbox", Shape::OneOf(&["inherit", "required"])),
                    ("agents", Shape::Either(&[Shape::OneOf(&["*"]), Shape::AnyList])),
                    ("scopes", SCOPES),
                    ("accessPolicyPlugin", Shape::NonEmptyText),
                ],
            })),
        ),
    ],
);

const REMOTE: Shape = object(&[
    ("url", Shape::Text),
    ("transport", Shape::OneOf(&["ssh", "direct"])),
    ("remotePort", PORT),
    ("token", SECRET),
    ("password", SECRET),
    ("edgeAuth", Shape::Map(&SECRET)),
    ("tlsFingerprint", Shape::Text),
    ("sshTarget", Shape::Text),
    ("sshIdentity", Shape::Text),
    ("sshHostKeyPolicy", Shape::OneOf(&["strict", "openssh"])),
]);

const IMAGES: Shape = object(&[
    ("allowUrl", Shape::Bool),
    ("urlAllowlist", TEXTS),
    ("allowedMimes", TEXTS),
    ("maxBytes", POSITIVE),
    ("maxRedirects", COUNT),
    ("timeoutMs", POSITIVE),
]);

const HTTP: Shape = object(&[
    (
        "endpoints",
        object(&[
            ("chatCompletions", object(&[("enabled", Shape::Bool), ("images", IMAGES)])),
            (
                "responses",
                object(&[
                    ("enabled", Shape::Bool),
                    ("maxUrlParts", COUNT),
                    (
                        "files",
                        object(&[
                            ("allowUrl", Shape::Bool),
                            ("urlAllowlist", TEXTS),
                            ("allowedMimes", TEXTS),
                            ("maxBytes", POSITIVE),
                            ("maxRedirects", COUNT),
                            ("timeoutMs", POSITIVE),
                            ("maxChars", POSITIVE),
                            (
                                "pdf",
                                object(&[
                                    ("maxPages", POSITIVE),
                                    ("maxPixels", POSITIVE),
                                    ("minTextChars", COUNT),
                                ]),
                            ),
                        ]),
                    ),
                    ("images", IMAGES),
                ]),
            ),
        ]),
    ),
    (
        "securityHeaders",
        object(&[("strictTransportSecurity", Shape::Either(&[Shape::Text, Shape::False]))]),
    ),
]);

const NODES: Shape = object(&[
    (
        "browser",
        object(&[("mode", Shape::OneOf(&["auto", "manual", "off"])), ("node", Shape::Text)]),
    ),
    (
        "pairing",
        object(&[
            ("autoApproveLocal", Shape::Bool),
            ("autoApproveCidrs", TEXTS),
            (
                "sshVerify",
                Shape::Either(&[
                    Shape::Bool,
                    object(&[
                        ("user", Shape::Text),
                        ("identity", Shape::Text),
                        ("timeoutMs", POSITIVE),
                        ("cidrs", TEXTS),
                    ]),
                ]),
            ),
        ]),
    ),
    ("pluginTools", object(&[("enabled", Shape::Bool)])),
    ("allowSkills", Shape::Bool),
    ("commands", object(&[("allow", TEXTS), ("deny", TEXTS)])),
]);

const ENV: Shape = object(&[
    ("shellEnv", object(&[("enabled", Shape::Bool), ("timeoutMs", COUNT)])),
    ("vars", Shape::Map(&Shape::Text)),
]);

const LOGGING: Shape = object(&[
    ("level", LEVEL),
    ("file", Shape::Text),
    ("maxFileBytes", POSITIVE),
    ("consoleLevel", LEVEL),
    ("consoleStyle", Shape::OneOf(&["pretty", "json"])),
    ("redactPatterns", TEXTS),
    (
        "audit",
        object(&[
            ("enabled", Shape::Bool),
            ("executionIdentity", Shape::Bool),
            ("messages", Shape::OneOf(&["off", "direct", "all"])),
        ]),
    ),
]);

const DISCOVERY: Shape = object(&[
    ("wideArea", object(&[("domain", Shape::Text)])),
    ("mdns", object(&[("mode", Shape::OneOf(&["off", "minimal", "full"]))])),
]);

const TELEMETRY: Shape = object(&[("enabled", Shape::Bool), ("consentedAt", Shape::Text)]);

const UPDATE: Shape = object(&[
    ("channel", Shape::OneOf(&["stable", "extended-stable", "beta", "dev"])),
    ("checkOnStart", Shape::Bool),
    ("auto", object(&[("enabled", Shape::Bool)])),
]);
