# make demo   a lottery experiment on real images, its portfolio of smaller models in one package, and one simulated
#             minute of a load on it (minutes, no GPU needed)
# make test   everything the project promises, checked (about 6 minutes on 2 cores)
# make test-full   the same with every architecture of torchvision and more generated graphs
# Both set up .venv first. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := --default_hparams=cifar_vgg_5 --dataset_name=digits --levels=8 --pruning_fraction=0.5 --batch_size=32 \
	--lr=0.05 --training_steps=2ep --milestone_steps=1ep --rewinding_steps=20it --root=runs

.PHONY: demo test test-full clean

demo: $(VENV)/.installed
	$(RUN) main.py lottery $(DEMO)
	run=$$(dirname $$(dirname $$($(RUN) main.py lottery $(DEMO) --display_output_location))) && \
		$(RUN) main.py portfolio pack $$run -o $$run/portfolio.dnns && \
		$(RUN) main.py replay --simulate --portfolio=$$run/portfolio.dnns --output=$$run/replay

test: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m pytest -n 2 --dist loadfile

test-full: $(VENV)/.installed
	$(RUN) -m pytest -n 2 --dist loadfile -m 'full or not full'

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(RUN) -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

clean:
	rm -rf $(VENV)
