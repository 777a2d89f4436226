#!/bin/sh
# Does what the Dockerfile does, without a container engine: container/check.sh MODEL.gguf
# A clean copy of the commit is built by container/build.sh into a clean environment, which then serves a folder with the model by the Dockerfile's own
# CMD, until its own HEALTHCHECK passes and a question is answered. Needs git, a C++ compiler, Python with venv, and a free port 8080.
set -eu
model=$(realpath "$1")
work=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir "$work/source" "$work/models"
git archive HEAD | tar -x -C "$work/source"
cd "$work/source"
env -u PYTHONPATH container/build.sh "$work/tqn"
ln -s "$model" "$work/models/"
unset PYTHONPATH
export PATH="$work/tqn/bin:$PATH"
# ["tqn"] and ["serve", "/models", ...] as words, with the folder of this check in place of /models.
words() { sed -n "s/^$1 \[\(.*\)\]/\1/p" container/Dockerfile | tr -d '",'; }
$(words ENTRYPOINT) $(words CMD | sed "s|/models|$work/models|") &
server=$!
health() { sh -c "python3 -c \"$(sed -n 's/^HEALTHCHECK.*"-c", "\(.*\)"\]$/\1/p' container/Dockerfile)\"" 2>/dev/null; }
tries=0
until health; do
  tries=$((tries + 1))
  test "$tries" -lt 60
  kill -0 "$server"
  sleep 1
done
python3 - <<'END'
import json, urllib.request
body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}).encode()
request = urllib.request.Request("http://127.0.0.1:8080/v1/chat/completions", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["message"])
END
echo "container: built, healthy, answers"
