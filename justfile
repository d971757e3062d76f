# The verbs of daily work.
default:
    @just --list

# Does everything compile?
check:
    cargo check --workspace --all-targets

# All tests, or those of one crate: `just test -p milonga-objects`
test *ARGS='--workspace':
    cargo test {{ARGS}}

# Format everything
fmt:
    cargo fmt --all

# clippy as CI runs it, and the dependency rules
lint:
    .ci/run clippy purity

# Documentation of the workspace, opened in a browser
doc:
    cargo doc --workspace --no-deps --open

# One benchmark: `just bench state --only imbl`
bench NAME *ARGS:
    cargo run --release -p milonga-benches --bin {{NAME}} -- {{ARGS}}

# The main job: `just job --processes 4 --kill`
job *ARGS:
    cargo run --release --example packages -- {{ARGS}}

# A cluster of local processes: `just cluster up`
cluster *ARGS:
    scripts/cluster {{ARGS}}

# Seeded worlds: `just world --seeds 1000`, `just world --seed 7 --trace`
world *ARGS:
    cargo run --release -p milonga-tests --bin world -- {{ARGS}}

# Real processes, killed and stopped: `just torture --rounds 60 --seed 7`
torture *ARGS:
    cargo run --release -p milonga-tests --bin torture -- {{ARGS}}

# Models of what threads share
loom:
    .ci/run loom

# libFuzzer with AddressSanitizer on one decoder: `just fuzz entry 60` (needs `cargo install cargo-fuzz`, a C++ compiler)
fuzz TARGET SECONDS='60' *ARGS:
    mkdir -p target/fuzz/corpus/{{TARGET}}
    cp -n fuzz/corpus/{{TARGET}}/* target/fuzz/corpus/{{TARGET}}/
    RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir fuzz/libfuzzer --target-dir target/fuzz {{TARGET}} target/fuzz/corpus/{{TARGET}} -- -max_total_time={{SECONDS}} -rss_limit_mb=3000 -timeout=20 {{ARGS}}

# What takes hours: worlds that CI has not seen, the whole bank of plants, 200 rounds of torture, 50 power cuts of all units
# (as root), every bit of a segment flipped, property tests with many more cases
long FROM='100000':
    cargo run --release -p milonga-tests --bin world -- --from {{FROM}} --seeds 5000
    cargo run --release -p milonga-tests --bin world -- --plants --seeds 1000
    cargo run --release -p milonga-tests --bin torture -- --rounds 200
    cargo run --release -p milonga-tests --bin torture -- --rounds 0 --power-cuts 50
    cargo test --release -p milonga-log-units --lib -- --ignored --nocapture every_bit
    PROPTEST_CASES=20000 cargo test --workspace --release

# Everything that has to be green, or some parts: `just ci fmt clippy`
ci *PARTS:
    .ci/run {{PARTS}}
