"""JOBS: the main job, `winnow train`: its data, models, options, training loop and report.

The library never imports this package; it may need the extras of `pip install "torch-winnow[cli]"`.
"""
