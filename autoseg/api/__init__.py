"""What scripts and notebooks call: one module per verb, with the names of the command line's options as keywords.

The examples below are run by its tests, with `dataset` naming a small folder of synthetic cases:

>>> import autoseg
>>> import numpy as np
>>> plan = autoseg.plan(dataset, preset="cpu", configurations=["2d"])
>>> plan.labels.foreground
('organ', 'lesion', 'vessel')
>>> trained = autoseg.train(dataset, folds=[0], epochs=1, steps=1, device="cpu")
>>> [(result.run.title, result.state) for result in trained.report.results]
[('2d fold 0', 'done')]
>>> selection = autoseg.select(dataset, allow_missing=True)
>>> selection.name
'2d'
>>> model = autoseg.load_model(dataset, device="cpu")
>>> model.classes
{'background': (0,), 'organ': (1,), 'lesion': (2,), 'vessel': (3,)}
>>> labels = model.predict(np.ones((2, 5, 40, 40)), spacing_mm=(3.0, 1.2, 1.2))
>>> labels.shape
(5, 40, 40)
"""
