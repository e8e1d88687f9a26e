#!/usr/bin/env bash
# Fills $OUT, which is all that is there when the targets run: a Python with the packages, and a script for each target.
set -euo pipefail

# The image's Python is older than the one that jaxcnn needs.
pip3 install uv
uv python install --install-dir "$OUT/python" 3.12
# uv also links a folder that is named after the minor version to this one.
python=$(realpath "$OUT"/python/*/bin/python3.12 | sort -u)
uv pip install --python "$python" --break-system-packages --constraint requirements.lock '.[train,serve]' atheris
cp -r tests "$OUT"

for folder in tests/fuzz/corpora/*; do
    target=$(basename "$folder")
    zip -jq "$OUT/fuzz_${target}_seed_corpus.zip" "$folder"/*
    cat > "$OUT/fuzz_$target" <<END
#!/bin/bash
# The name by which ClusterFuzzLite recognises a target: LLVMFuzzerTestOneInput.
here=\$(cd "\$(dirname "\$0")" && pwd)
PYTHONPATH=\$here exec "\$here/${python#"$(realpath "$OUT")/"}" -m tests.fuzz $target "\$@"
END
    chmod +x "$OUT/fuzz_$target"
done
