"""Text of strangers that tries to act instead of being read: pages, terminals, markup, tables."""

from __future__ import annotations

PAGES = (
    "</script><script>window.__pwned = 1</script>",
    "</ScRiPt ><script>window.__pwned = 1</script>",
    '<img src=x onerror="window.__pwned = 2">',
    "\"><svg onload='window.__pwned = 3'>",
    "'\" autofocus onfocus=window.__pwned=4 x='",
    "<!--<script>", "-->", "]]>", "<![CDATA[",
    "{{ 7 * 7 }}{% raw %}${window.__pwned = 5}",
    '<a href="javascript:window.__pwned=6" style="color:red">click</a>',
    "<iframe srcdoc='<script>parent.__pwned=7</script>'>",
    "<math><mtext><style><img src onerror=window.__pwned=8></style>",
    "<base href=//evil.example>", "<meta http-equiv=refresh content=0;url=//evil.example>",
    "\u2028window.__pwned = 9\u2029", "&lt;script&gt;", "<style>*{display:none}</style>",
    "<svg><animate onbegin=window.__pwned=10>", "javascript:window.__pwned=11",
    "<form action=//evil.example><input type=submit>", "\\u003cscript\\u003e",
)  # fmt: skip
TERMINALS = (
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\x1b[2J\x1b[H", "\x1b]52;c;cm0gLXJmIC8=\x07", "\x9b31mred", "\x9d0;title\x9c", "back\x08space",
    "over\rwritten", "bell\x07", "\x00nul", "\x7fdel", "\u202egnp.exe", "\u2066isolate\u2069",
)  # fmt: skip
MARKUP = (
    "[bold]bold[/]", "[/]", "[/nothing]", "[link=http://evil.example]x[/link]", "\\[red]", "[",
    "trailing\\", "[@click=app.quit]x[/]", ":skull:",
)  # fmt: skip
SECRETS = {
    "hub token": "hf_abcdefghijklmnopqrstuvwxyz",
    "key": "sk-proj-abcdefghijklmnop0123456789",
    "cloud key": "AKIAIOSFODNN7EXAMPLE",
    "bearer": "Authorization: Bearer ya29.a0AfH6SMBx-abc_def",
    "basic": "Authorization: Basic dXNlcjpodW50ZXIy",
    "userinfo": "https://user:hunter2hunter2@host.example/path",
    "password with an at sign": "postgresql://user:p@ss-word@host.example/db",
    "token alone": "git+https://sometoken123@github.com/a/b",
    "assignment": "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCY",
    "in JSON": '{"api_key": "abcdef123456"}',
    "option": "--hf-token abcdefgh1234",
    "query": "https://bucket.example/x?X-Amz-Signature=abcdef0123456789&x=1",
    "forge": "ghp_abcdefghijklmnopqrstuvwxyz012345",
    "web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc_def",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
}
"""A text with a secret in it, by what it is."""
SECRET_PARTS = {
    "hub token": "hf_abc", "key": "sk-proj", "cloud key": "AKIAIOSF", "bearer": "ya29",
    "basic": "dXNlcj", "userinfo": "hunter2", "password with an at sign": "ss-word",
    "token alone": "sometoken123", "assignment": "wJalr", "in JSON": "abcdef123456",
    "option": "abcdefgh1234", "query": "abcdef0123456789", "forge": "ghp_abc",
    "web token": "eyJhbGci", "private key": "MIIEow",
}  # fmt: skip
"""What of it nobody may see."""
ALL = (*PAGES, *TERMINALS, *MARKUP)
