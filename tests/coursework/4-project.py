# %% q1 mistake: no string is blank
def problems(images, texts, y, groups):
    found = set()
    if len({len(images), len(texts), len(y), len(groups)}) > 1:
        found.add("length")
    elif any(len({b for b, h in zip(y, groups) if h == g}) > 1 for g in set(groups)):
        found.add("group")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        found.add("pixels")
    if not all(isinstance(text, str) for text in texts):
        found.add("text")
    if len(set(y)) < 2 or set(y) != set(range(len(set(y)))):
        found.add("label")
    return found
# %% q1 mistake: channels first
def problems(images, texts, y, groups):
    found = set()
    if len({len(images), len(texts), len(y), len(groups)}) > 1:
        found.add("length")
    elif any(len({b for b, h in zip(y, groups) if h == g}) > 1 for g in set(groups)):
        found.add("group")
    if images.dtype != np.uint8 or images.ndim != 4:
        found.add("pixels")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        found.add("text")
    if len(set(y)) < 2 or set(y) != set(range(len(set(y)))):
        found.add("label")
    return found
# %% q1 mistake: gaps among the labels
def problems(images, texts, y, groups):
    found = set()
    if len({len(images), len(texts), len(y), len(groups)}) > 1:
        found.add("length")
    elif any(len({b for b, h in zip(y, groups) if h == g}) > 1 for g in set(groups)):
        found.add("group")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        found.add("pixels")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        found.add("text")
    if len(set(y)) < 2 or min(y) != 0:
        found.add("label")
    return found
# %% q1 right: pandas
def problems(images, texts, y, groups):
    y, groups = list(map(int, y)), list(map(int, groups))
    same = len(images) == len(texts) == len(y) == len(groups)
    broken = {
        "length": not same,
        "group": same and pd.DataFrame({"y": y, "g": groups}).groupby("g")["y"].nunique().max() > 1,
        "pixels": images.dtype.name != "uint8" or images.shape[3:] != (3,),
        "text": any(not isinstance(t, str) or t.strip() == "" for t in texts),
        "label": sorted(set(y)) != list(range(max(2, len(set(y))))),
    }
    return {name for name, is_broken in broken.items() if is_broken}
# %% q1 right: a list of names
def problems(images, texts, y, groups):
    found = []
    if not len(images) == len(texts) == len(y) == len(groups):
        found += ["length"]
    elif len(set(zip(groups, y))) > len(set(groups)):
        found += ["group"]
    if not (images.dtype == "uint8" and images.ndim == 4 and images.shape[3] == 3):
        found += ["pixels"]
    for text in texts:
        if not isinstance(text, str) or not text.split():
            found += ["text"]
            break
    if min(y) != 0 or max(y) < 1 or len(set(y)) != max(y) + 1:
        found += ["label"]
    return found
# %% q2 mistake: deals out rows
def grouped_folds(groups, n_folds, random_state):
    return np.random.default_rng(random_state).permutation(len(groups)) % n_folds
# %% q2 mistake: a draw for each group
def grouped_folds(groups, n_folds, random_state):
    names, number = np.unique(groups, return_inverse=True)
    return np.random.default_rng(random_state).integers(0, n_folds, len(names))[number]
# %% q2 mistake: without chance
def grouped_folds(groups, n_folds, random_state):
    return np.unique(groups, return_inverse=True)[1] % n_folds
# %% q2 right: a shuffled list and a dictionary
import random

def grouped_folds(groups, n_folds, random_state):
    names = sorted(set(int(g) for g in groups))
    random.Random(random_state).shuffle(names)
    fold = {name: i % n_folds for i, name in enumerate(names)}
    return [fold[int(g)] for g in groups]
# %% q2 right: scikit-learn on the groups
from sklearn.model_selection import KFold

def grouped_folds(groups, n_folds, random_state):
    groups = np.asarray(groups)
    names = np.unique(groups)
    folds = np.zeros(len(groups), int)
    splits = KFold(n_folds, shuffle=True, random_state=random_state).split(names)
    for k, (_, test) in enumerate(splits):
        folds[np.isin(groups, names[test])] = k
    return folds
# %% q3 mistake: a fixed threshold on grey levels
def image_features(images):
    x = images.astype(float)
    x = x - np.median(x, axis=(1, 2), keepdims=True)
    inside = np.abs(x).sum(axis=3) > 250
    size = inside.mean(axis=(1, 2))
    return np.column_stack([x.mean(axis=(1, 2)), size])
# %% q3 mistake: standardised over the pictures at hand
def image_features(images):
    x = images.reshape(len(images), 8, 4, 8, 4, 3).mean(axis=(1, 2, 3, 4))
    return (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)
# %% q3 mistake: every pixel is a feature
def image_features(images):
    return images.reshape(len(images), -1) / 255
# %% q3 mistake: differences wrap around in uint8
def image_features(images):
    background = images[:, :1, :1]
    change = images - background
    return np.column_stack([change.mean(axis=(1, 2)), change.std(axis=(1, 2)) + 1.0])
# %% q3 right: shares of far pixels
def image_features(images):
    x = images.astype(float)
    x = x - np.median(x, axis=(1, 2), keepdims=True)
    x = x / (x.std(axis=(1, 2, 3), keepdims=True) + 1e-9)
    return np.hstack([x.mean(axis=(1, 2)), (x < -1).mean(axis=(1, 2)), (x < -2).mean(axis=(1, 2))])
# %% q3 right: picture by picture with OpenCV
import cv2

def image_features(images):
    rows = []
    for image in images:
        smooth = cv2.GaussianBlur(image, (3, 3), 0).astype(float)
        smooth -= np.median(smooth.reshape(-1, 3), axis=0)
        far = np.sqrt((smooth**2).sum(axis=2))
        inside = far >= max(np.sort(far.ravel())[-30] / 2, 1e-6)
        if not inside.any():
            inside[:] = True
        colour = smooth[inside].mean(axis=0)
        rows.append([*(colour / (np.abs(colour).max() + 1e-9)), np.sqrt(inside.mean())])
    return np.array(rows)
# %% q4 mistake: a vocabulary of the texts at hand
from sklearn.feature_extraction.text import TfidfVectorizer

def text_features(texts):
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), max_features=64).fit_transform(texts).toarray()
# %% q4 mistake: whole words
def text_features(texts):
    words = ["red", "blue", "circle", "square", "heavy", "weightless"]
    return np.array([[float(word in text.split()) for word in words] for text in texts])
# %% q4 mistake: too many columns
def text_features(texts):
    return HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=4096).transform(texts).toarray()
# %% q4 right: the nearest of the words that matter
import difflib

def text_features(texts):
    words = ["red", "blue", "circle", "square", "heavy", "weightless"]
    return np.array([
        [max(difflib.SequenceMatcher(None, word, other).ratio() for other in text.split() or [""]) for word in words]
        for text in texts
    ])
# %% q4 right: pieces of the training texts
from sklearn.feature_extraction.text import CountVectorizer

pieces = CountVectorizer(analyzer="char_wb", ngram_range=(2, 3), max_features=64).fit(texts)

def text_features(texts):
    return np.log1p(pieces.transform(texts).toarray())
# %% q4 right: hashed by hand
import zlib

def text_features(texts):
    rows = np.zeros((len(texts), 64))
    for row, text in zip(rows, texts):
        for word in text.lower().split():
            word = f"<{word}>"
            for n in (2, 3):
                for i in range(len(word) - n + 1):
                    row[zlib.crc32(word[i : i + n].encode()) % 64] += 1
    return rows
# %% q5 mistake: accuracy on the training set
def cross_validated(X, y, fold_of_row, C):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
    return model.fit(X, y).predict(X)
# %% q5 mistake: the scaler sees all rows
def cross_validated(X, y, fold_of_row, C):
    X, guess = StandardScaler().fit_transform(X), np.empty_like(y)
    for fold in np.unique(fold_of_row):
        test = fold_of_row == fold
        model = LogisticRegression(C=C, max_iter=2000).fit(X[~test], y[~test])
        guess[test] = model.predict(X[test])
    return guess
# %% q5 mistake: predictions in the order of the folds
def cross_validated(X, y, fold_of_row, C):
    guess = []
    for fold in np.unique(fold_of_row):
        test = fold_of_row == fold
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
        guess += model.fit(X[~test], y[~test]).predict(X[test]).tolist()
    return np.array(guess)
# %% q5 mistake: unscaled features
def cross_validated(X, y, fold_of_row, C):
    guess = np.empty_like(y)
    for fold in np.unique(fold_of_row):
        test = fold_of_row == fold
        model = LogisticRegression(C=C, max_iter=2000).fit(X[~test], y[~test])
        guess[test] = model.predict(X[test])
    return guess
# %% q5 right: scikit-learn
from sklearn.model_selection import PredefinedSplit, cross_val_predict

def cross_validated(X, y, fold_of_row, C):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
    return cross_val_predict(model, X, y, cv=PredefinedSplit(fold_of_row))
# %% q5 right: scaled by hand, a dictionary of answers
def cross_validated(X, y, fold_of_row, C):
    answers = {}
    for fold in sorted(set(list(fold_of_row))):
        train = [i for i, f in enumerate(fold_of_row) if f != fold]
        test = [i for i, f in enumerate(fold_of_row) if f == fold]
        mean, scale = X[train].mean(axis=0), X[train].std(axis=0)
        scale = np.where(scale > 0, scale, 1)
        model = LogisticRegression(C=C, max_iter=2000).fit((X[train] - mean) / scale, y[train])
        answers.update(zip(test, model.predict((X[test] - mean) / scale)))
    return [answers[i] for i in range(len(X))]
# %% q6 mistake: side by side
def fuse(x_v, x_t):
    return np.hstack([x_v, x_t])
# %% q6 mistake: products alone
def fuse(x_v, x_t):
    return (x_v[:, :, None] * x_t[:, None, :]).reshape(len(x_v), -1)
# %% q6 mistake: entry times entry
def fuse(x_v, x_t):
    k = min(x_v.shape[1], x_t.shape[1])
    return np.hstack([x_v, x_t, x_v[:, :k] * x_t[:, :k]])
# %% q6 mistake: the wrong axes are multiplied
def fuse(x_v, x_t):
    products = x_v.T @ x_t
    return np.hstack([x_v, x_t, np.tile(products.ravel(), (len(x_v), 1))])
# %% q6 right: einsum, products first
def fuse(x_v, x_t):
    products = np.einsum("ni,nj->nij", x_v, x_t).reshape(len(x_v), -1)
    return np.concatenate([products, x_t, x_v], axis=1)
# %% q6 right: the product of vectors with a one
def fuse(x_v, x_t):
    return np.array([np.outer([1, *a], [1, *b]).ravel() for a, b in zip(x_v, x_t)])
# %% q6 right: all products of two entries
from sklearn.preprocessing import PolynomialFeatures

def fuse(x_v, x_t):
    return PolynomialFeatures(2).fit_transform(np.hstack([x_v, x_t]))
# %% q7 mistake: the score on the training rows
def choose(candidates, y, fold_of_row, C_values):
    scores = {}
    for name, X in candidates.items():
        for C in C_values:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
            scores[name, C] = model.fit(X, y).score(X, y)
    name, C = max(scores, key=scores.get)
    return name, C, scores[name, C]
# %% q7 mistake: the last of equals
def choose(candidates, y, fold_of_row, C_values):
    best = ("", 0, -1)
    for name, X in candidates.items():
        for C in C_values:
            score = np.mean(cross_validated(X, y, fold_of_row, C) == y)
            if score >= best[2]:
                best = (name, C, score)
    return best
# %% q7 mistake: the tuple in another order
def choose(candidates, y, fold_of_row, C_values):
    return max((np.mean(cross_validated(X, y, fold_of_row, C) == y), name, C)
               for name, X in candidates.items() for C in C_values)[::-1]
# %% q7 mistake: always the first C
def choose(candidates, y, fold_of_row, C_values):
    scores = {(name, C): np.mean(cross_validated(X, y, fold_of_row, C) == y)
              for name, X in candidates.items() for C in C_values}
    name, C = max(scores, key=scores.get)
    return name, C_values[0], scores[name, C]
# %% q7 right: max with a key
def choose(candidates, y, fold_of_row, C_values):
    scores = {(name, C): (np.asarray(cross_validated(X, y, fold_of_row, C)) == y).mean()
              for name, X in candidates.items() for C in C_values}
    best = max(scores, key=scores.get)
    return *best, scores[best]
# %% q7 right: a table
def choose(candidates, y, fold_of_row, C_values):
    rows = [(name, C, float(np.mean(cross_validated(X, y, fold_of_row, C) == y)))
            for name, X in candidates.items() for C in C_values]
    table = pd.DataFrame(rows, columns=["name", "C", "accuracy"])
    return tuple(table.loc[table["accuracy"].idxmax()])
# %% q8 mistake: swapped modalities
machine = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
machine.fit(np.hstack([image_features(images), text_features(texts)]), y)

def predict(images, texts):
    return machine.predict(np.hstack([text_features(texts), image_features(images)]))
# %% q8 mistake: the picture alone
machine = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
machine.fit(image_features(images), y)

def predict(images, texts):
    return machine.predict(image_features(images))
# %% q8 mistake: side by side
machine = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
machine.fit(np.hstack([image_features(images), text_features(texts)]), y)

def predict(images, texts):
    return machine.predict(np.hstack([image_features(images), text_features(texts)]))
# %% q8 mistake: the test pairs are standardised by their own mean
scaler = StandardScaler()
X = scaler.fit_transform(np.hstack([image_features(images), text_features(texts)]))
machine = LogisticRegression(C=0.1, max_iter=2000).fit(fuse(X[:, :-64], X[:, -64:]), y)

def predict(images, texts):
    X = StandardScaler().fit_transform(np.hstack([image_features(images), text_features(texts)]))
    return machine.predict(fuse(X[:, :-64], X[:, -64:]))
# %% q8 mistake: only the first camera
machine = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=2000))
machine.fit(np.hstack([fuse(image_features(images), text_features(texts)), images.reshape(len(y), -1)]), y)

def predict(images, texts):
    fused = fuse(image_features(images), text_features(texts))
    return machine.predict(np.hstack([fused, images.reshape(len(fused), -1)]))
# %% q8 right: a kernel for four questions
from sklearn.svm import SVC

worse = other_camera(images, texts, 5)
X = np.vstack([np.hstack([image_features(i), text_features(t)]) for i, t in ((images, texts), worse)])
machines = [make_pipeline(StandardScaler(), SVC(kernel="poly", degree=2, coef0=1, C=0.3)).fit(X, np.tile(y >> k & 1, 2))
            for k in (3, 2, 1, 0)]

def predict(images, texts):
    X = np.hstack([image_features(images), text_features(texts)])
    answers = [machine.predict(X) for machine in machines]
    return [int(8 * a + 4 * b + 2 * c + d) for a, b, c, d in zip(*answers)]
# %% q8 right: rules for words, one linear machine
import difflib

def nearest(text, words):
    ratio = {w: max(difflib.SequenceMatcher(None, w, part).ratio() for part in text.split()) for w in words}
    return ratio[words[0]] - ratio[words[1]]

def by_rules(images, texts):
    said = np.array([[nearest(t, w) for w in (("red", "blue"), ("circle", "square"), ("heavy", "weightless"))]
                     for t in texts])
    return fuse(scale.transform(image_features(images)), said)

scale = StandardScaler().fit(image_features(images))
machine = make_pipeline(StandardScaler(), LogisticRegression(C=1, max_iter=2000)).fit(by_rules(images, texts), y)

def predict(images, texts):
    return machine.predict(by_rules(images, texts)).tolist()
# %% q9 mistake: draws rows
def group_bootstrap(right, groups, n_resamples, random_state):
    right = np.asarray(right, float)
    rng = np.random.default_rng(random_state)
    scores = right[rng.integers(len(right), size=(n_resamples, len(right)))].mean(axis=1)
    return right.mean(), *np.quantile(scores, [0.025, 0.975])
# %% q9 mistake: the mean of the groups' means
def group_bootstrap(right, groups, n_resamples, random_state):
    means = pd.Series(np.asarray(right, float)).groupby(np.asarray(groups)).mean().to_numpy()
    rng = np.random.default_rng(random_state)
    scores = means[rng.integers(len(means), size=(n_resamples, len(means)))].mean(axis=1)
    return np.mean(right), *np.quantile(scores, [0.025, 0.975])
# %% q9 mistake: without replacement
def group_bootstrap(right, groups, n_resamples, random_state):
    right, groups = np.asarray(right, float), np.asarray(groups)
    rng, names = np.random.default_rng(random_state), np.unique(groups)
    scores = [right[np.isin(groups, rng.choice(names, len(names)))].mean() for _ in range(n_resamples)]
    return right.mean(), *np.quantile(scores, [0.025, 0.975])
# %% q9 right: lists of rows
def group_bootstrap(right, groups, n_resamples, random_state):
    right = np.asarray(right, float)
    rows = {}
    for i, g in enumerate(groups):
        rows.setdefault(int(g), []).append(i)
    rows = list(rows.values())
    rng = np.random.default_rng(random_state)
    scores = []
    for _ in range(n_resamples):
        drawn = [i for k in rng.integers(len(rows), size=len(rows)) for i in rows[k]]
        scores.append(right[drawn].mean())
    low, high = np.percentile(scores, [2.5, 97.5])
    return [right.mean(), low, high]
# %% q9 right: cmlearn
from cmlearn.metrics import bootstrap_interval

def group_bootstrap(right, groups, n_resamples, random_state):
    right = np.asarray(right).astype(int)
    found = bootstrap_interval(lambda a, b: np.mean(np.asarray(a) == np.asarray(b)), np.ones(len(right), int), right,
                               groups=np.asarray(groups), n_resamples=n_resamples, random_state=random_state)
    return found.estimate, found.low, found.high
# %% q9 right: how often each group is drawn
def group_bootstrap(right, groups, n_resamples, random_state):
    right = np.asarray(right, float)
    number = np.unique(groups, return_inverse=True)[1]
    m = number.max() + 1
    times = np.random.default_rng(random_state).multinomial(m, np.full(m, 1 / m), size=n_resamples)
    weights = times[:, number]
    scores = weights @ right / weights.sum(axis=1)
    return right.mean(), np.quantile(scores, 0.025), np.quantile(scores, 0.975)
# %% q10 mistake: right answers are listed
from collections import Counter

def most_confused(y_true, y_pred, k):
    return [(int(a), int(b), n) for (a, b), n in Counter(zip(y_true, y_pred)).most_common(k)]
# %% q10 mistake: predicted before true
def most_confused(y_true, y_pred, k):
    counts = {}
    for true, guess in zip(y_true, y_pred):
        if true != guess:
            counts[int(guess), int(true)] = counts.get((int(guess), int(true)), 0) + 1
    return [(*pair, n) for pair, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:k]]
# %% q10 mistake: equals in the order of the rows
from collections import Counter

def most_confused(y_true, y_pred, k):
    wrong = Counter((int(a), int(b)) for a, b in zip(y_true, y_pred) if a != b)
    return [(*pair, n) for pair, n in wrong.most_common(k)]
# %% q10 right: pandas
def most_confused(y_true, y_pred, k):
    table = pd.DataFrame({"true": list(y_true), "guess": list(y_pred)})
    table = table[table["true"] != table["guess"]]
    counts = table.value_counts().rename("n").reset_index()
    counts = counts.sort_values(["n", "true", "guess"], ascending=[False, True, True]).head(k)
    return [tuple(row) for row in counts[["true", "guess", "n"]].to_numpy()]
# %% q10 right: scikit-learn
from sklearn.metrics import confusion_matrix

def most_confused(y_true, y_pred, k):
    classes = np.union1d(y_true, y_pred)
    matrix = confusion_matrix(y_true, y_pred, labels=classes)
    np.fill_diagonal(matrix, 0)
    cells = [(-matrix[i, j], a, b) for i, a in enumerate(classes) for j, b in enumerate(classes) if matrix[i, j]]
    return [(a, b, -n) for n, a, b in sorted(cells)[:k]]
# %% q11 mistake: the first dip ends it
def answer_when_sure(confidence, right, target):
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    found = (float("inf"), 0.0)
    for threshold in np.unique(confidence)[::-1]:
        answered = confidence >= threshold
        if right[answered].mean() < target:
            break
        found = (threshold, answered.mean())
    return found
# %% q11 mistake: equal confidences are torn apart
def answer_when_sure(confidence, right, target):
    order = np.argsort(-np.asarray(confidence, float), kind="stable")
    shares = np.cumsum(np.asarray(right, float)[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(shares >= target)
    if not len(good):
        return float("inf"), 0.0
    return np.asarray(confidence)[order][good[-1]], (good[-1] + 1) / len(order)
# %% q11 mistake: more than the threshold
def answer_when_sure(confidence, right, target):
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    for threshold in np.unique(confidence):
        answered = confidence > threshold
        if answered.any() and right[answered].mean() >= target:
            return threshold, answered.mean()
    return float("inf"), 0.0
# %% q11 mistake: the share of right answers is returned
def answer_when_sure(confidence, right, target):
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    for threshold in np.unique(confidence):
        answered = confidence >= threshold
        if right[answered].mean() >= target:
            return threshold, right[answered].mean()
    return float("inf"), 0.0
# %% q11 right: lists
def answer_when_sure(confidence, right, target):
    pairs = list(zip(confidence, right))
    good = []
    for t in set(confidence):
        kept = [bool(r) for c, r in pairs if c >= t]
        if sum(kept) >= target * len(kept):
            good.append((t, len(kept) / len(pairs)))
    return min(good, default=(float("inf"), 0.0))
# %% q11 right: cumulative sums at the ends of ties
def answer_when_sure(confidence, right, target):
    table = pd.DataFrame({"c": list(confidence), "r": np.asarray(right, float)})
    by_value = table.groupby("c")["r"].agg(["sum", "size"]).sort_index(ascending=False).cumsum()
    good = by_value[by_value["sum"] / by_value["size"] >= target]
    if good.empty:
        return np.inf, 0.0
    return good.index[-1], good["size"].iloc[-1] / len(table)
# %% q13 mistake: zeros for what is missing
def predict_missing(images, texts):
    images = np.stack([np.zeros((32, 32, 3), np.uint8) if image is None else image for image in images])
    return predict(images, ["" if text is None else text for text in texts])
# %% q13 mistake: answers in another order
def predict_missing(images, texts):
    whole = [i for i in range(len(texts)) if images[i] is not None and texts[i] is not None]
    guess = list(predict(np.stack([images[i] for i in whole]), [texts[i] for i in whole])) if whole else []
    return guess + [0] * (len(texts) - len(whole))
# %% q13 mistake: always one class where half is missing
def predict_missing(images, texts):
    guess = []
    for image, text in zip(images, texts):
        whole = image is not None and text is not None
        guess.append(int(predict(image[None], [text])[0]) if whole else 5)
    return guess
# %% q13 right: pair by pair
from sklearn.svm import SVC

seeing = make_pipeline(StandardScaler(), SVC(C=1)).fit(image_features(images), y)
reading = make_pipeline(StandardScaler(), SVC(C=1)).fit(text_features(texts), y)

def predict_missing(images, texts):
    guess = []
    for image, text in zip(images, texts):
        if image is None:
            guess.append(int(reading.predict(text_features([text]))[0]))
        elif text is None:
            guess.append(int(seeing.predict(image_features(image[None]))[0]))
        else:
            guess.append(int(predict(image[None], [text])[0]))
    return guess
# %% q13 right: the four questions for each modality
logs = {}
for name, X in (("image", image_features(images)), ("text", text_features(texts))):
    logs[name] = [make_pipeline(StandardScaler(), LogisticRegression(C=0.03)).fit(X, y >> k & 1) for k in (3, 2, 1, 0)]

def one_sided(name, X):
    return sum(machine.predict(X) << k for machine, k in zip(logs[name], (3, 2, 1, 0)))

def predict_missing(images, texts):
    frame = pd.DataFrame({"image": images, "text": texts}, dtype=object)
    guess = pd.Series(0, index=frame.index)
    no_image, no_text = (frame[c].map(lambda v: v is None) for c in ("image", "text"))
    if no_image.any():
        guess[no_image] = one_sided("text", text_features(list(frame["text"][no_image])))
    if no_text.any():
        guess[no_text] = one_sided("image", image_features(np.stack(list(frame["image"][no_text]))))
    both = ~(no_image | no_text)
    if both.any():
        guess[both] = np.asarray(predict(np.stack(list(frame["image"][both])), list(frame["text"][both])))
    return guess
