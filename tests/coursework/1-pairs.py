# %% q1 mistake: the largest class by number
n_pairs = len(data)
n_classes = len(emoji.target_names)
largest_class = int(np.bincount(y).argmax())
# %% q1 mistake: columns for classes
n_pairs = len(data)
n_classes = data.shape[1]
largest_class = emoji.target_names[0]
# %% q1 right: by pandas
n_pairs = data.shape[0]
n_classes = len(np.unique(y))
largest_class = pd.Series(y).map(lambda i: emoji.target_names[i]).value_counts().index[0]
# %% q1 right: by a loop
n_pairs = sum(1 for _ in y)
n_classes = max(y) + 1
sizes = {}
for label in y:
    sizes[label] = sizes.get(label, 0) + 1
largest_class = emoji.target_names[max(sizes, key=sizes.get)]
# %% q2 mistake: counts only None
def missing_share(pairs):
    none = pairs.isna()
    return {"image": none["image"].mean(), "text": none["text"].mean(),
            "both": (none["image"] & none["text"]).mean()}
# %% q2 mistake: swapped modalities
def missing_share(pairs):
    image = pairs["image"].isna()
    text = pairs["text"].isna() | (pairs["text"].fillna("").str.strip() == "")
    return {"image": text.mean(), "text": image.mean(), "both": (image & text).mean()}
# %% q2 mistake: one of the two is enough
def missing_share(pairs):
    image = pairs["image"].isna()
    text = pairs["text"].isna() | (pairs["text"].fillna("").str.strip() == "")
    return {"image": image.mean(), "text": text.mean(), "both": (image | text).mean()}
# %% q2 right: row by row
def missing_share(pairs):
    def gone(cell):
        return cell is None or cell != cell
    images, texts = list(pairs["image"]), list(pairs["text"])
    image = [gone(i) for i in images]
    text = [gone(t) or not t.strip() for t in texts]
    n = len(pairs)
    return {"image": sum(image) / n, "text": sum(text) / n,
            "both": sum(i and t for i, t in zip(image, text)) / n}
# %% q2 right: replace and count
def missing_share(pairs):
    plain = pairs.replace(r"^\s*$", None, regex=True).isna()
    return dict(plain[["image", "text"]].mean(), both=plain[["image", "text"]].all(axis=1).mean())
# %% q3 mistake: white space at the ends is kept
def text_groups(texts):
    return np.unique([t.lower() for t in texts], return_inverse=True)[1]
# %% q3 mistake: all white space is removed
def text_groups(texts):
    return np.unique(["".join(t.lower().split()) for t in texts], return_inverse=True)[1]
# %% q3 mistake: bags of words
def text_groups(texts):
    return np.unique([" ".join(sorted(t.lower().split())) for t in texts], return_inverse=True)[1]
# %% q3 right: a dictionary
def text_groups(texts):
    numbers = {}
    return np.array([numbers.setdefault(tuple(t.lower().split()), len(numbers)) for t in texts])
# %% q3 right: pandas
def text_groups(texts):
    plain = pd.Series(texts).str.lower().str.replace(r"\s+", " ", regex=True).str.strip()
    return pd.factorize(plain)[0]
# %% q4 mistake: the difference wraps around
def near_duplicates(pixels, threshold):
    n = len(pixels)
    return [(i, j) for i in range(n) for j in range(i + 1, n)
            if np.abs(pixels[i] - pixels[j]).mean() <= threshold]
# %% q4 mistake: signed differences
def near_duplicates(pixels, threshold):
    values = pixels.astype(float)
    n = len(pixels)
    return [(i, j) for i in range(n) for j in range(i + 1, n)
            if abs((values[i] - values[j]).mean()) <= threshold]
# %% q4 mistake: every pair twice
def near_duplicates(pixels, threshold):
    values = pixels.astype(float)
    n = len(pixels)
    return [(i, j) for i in range(n) for j in range(n)
            if i != j and np.abs(values[i] - values[j]).mean() <= threshold]
# %% q4 mistake: the root of the mean square
def near_duplicates(pixels, threshold):
    values = pixels.astype(float)
    n = len(pixels)
    return [(i, j) for i in range(n) for j in range(i + 1, n)
            if np.sqrt(((values[i] - values[j]) ** 2).mean()) <= threshold]
# %% q4 mistake: the largest difference
def near_duplicates(pixels, threshold):
    values = pixels.astype(float)
    n = len(pixels)
    return [(i, j) for i in range(n) for j in range(i + 1, n)
            if np.abs(values[i] - values[j]).max() <= threshold]
# %% q4 mistake: red alone
def near_duplicates(pixels, threshold):
    values = pixels.astype(float)[..., 0]
    n = len(pixels)
    return [(i, j) for i in range(n) for j in range(i + 1, n)
            if np.abs(values[i] - values[j]).mean() <= threshold]
# %% q4 right: distances of scipy
from scipy.spatial.distance import pdist, squareform

def near_duplicates(pixels, threshold):
    flat = pixels.reshape(len(pixels), -1).astype(float)
    distance = squareform(pdist(flat, "cityblock")) / flat.shape[1]
    return [(i, j) for i, j in np.argwhere(distance <= threshold + 1e-12) if i < j]
# %% q4 right: yields with integers of 16 bits
def near_duplicates(pixels, threshold):
    wide = pixels.astype(np.int16)
    for i, one in enumerate(wide):
        for j in range(i + 1, len(wide)):
            if np.mean(np.abs(one - wide[j])) <= threshold:
                yield i, j
# %% q5 mistake: counts occurrences
def telltale_words(texts, y, min_texts):
    classes = {}
    for text, label in zip(texts, y):
        for word in text.lower().split():
            classes.setdefault(word, []).append(label)
    return {w for w, seen in classes.items() if len(seen) >= min_texts and len(set(seen)) == 1}
# %% q5 mistake: upper and lower case differ
def telltale_words(texts, y, min_texts):
    classes = {}
    for text, label in zip(texts, y):
        for word in set(text.split()):
            classes.setdefault(word, []).append(label)
    return {w for w, seen in classes.items() if len(seen) >= min_texts and len(set(seen)) == 1}
# %% q5 mistake: most of one class
def telltale_words(texts, y, min_texts):
    classes = {}
    for text, label in zip(texts, y):
        for word in set(text.lower().split()):
            classes.setdefault(word, []).append(label)
    return {w for w, s in classes.items() if max(s.count(c) for c in s) >= min_texts / 2}
# %% q5 right: a Counter a class
from collections import Counter

def telltale_words(texts, y, min_texts):
    by_class = {c: Counter() for c in set(y)}
    for text, label in zip(texts, y):
        by_class[label].update(set(text.lower().split()))
    total = sum(by_class.values(), Counter())
    return {w for counts in by_class.values() for w, k in counts.items()
            if k == total[w] and k >= min_texts}
# %% q5 right: pandas
def telltale_words(texts, y, min_texts):
    table = pd.DataFrame({"word": [sorted(set(t.lower().split())) for t in texts], "y": list(y)})
    by_word = table.explode("word").groupby("word")["y"].agg(["size", "nunique"])
    return set(by_word.index[(by_word["size"] >= min_texts) & (by_word["nunique"] == 1)])
# %% q6 mistake: splits rows
def grouped_split(groups, test_share, random_state):
    order = np.random.default_rng(random_state).permutation(len(groups))
    cut = round(test_share * len(groups))
    return order[cut:], order[:cut]
# %% q6 mistake: always the same groups
def grouped_split(groups, test_share, random_state):
    groups = np.asarray(groups)
    names = np.unique(groups)
    is_test = np.isin(groups, names[: round(test_share * len(names))])
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)
# %% q6 mistake: training and test exchanged
def grouped_split(groups, test_share, random_state):
    groups = np.asarray(groups)
    names = np.unique(groups)
    rng = np.random.default_rng(random_state)
    is_test = np.isin(groups, rng.permutation(names)[: round(test_share * len(names))])
    return np.flatnonzero(is_test), np.flatnonzero(~is_test)
# %% q6 mistake: codes that are no numbers
def grouped_split(groups, test_share, random_state):
    names = np.flatnonzero(np.bincount(groups))
    rng = np.random.default_rng(random_state)
    is_test = np.isin(groups, rng.permutation(names)[: round(test_share * len(names))])
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)
# %% q6 right: scikit-learn
from sklearn.model_selection import GroupShuffleSplit

def grouped_split(groups, test_share, random_state):
    splitter = GroupShuffleSplit(1, test_size=test_share, random_state=random_state)
    return next(splitter.split(np.zeros(len(groups)), groups=groups))
# %% q6 right: the random module
import random

def grouped_split(groups, test_share, random_state):
    names = sorted(set(groups.tolist()))
    chosen = set(random.Random(random_state).sample(names, round(test_share * len(names))))
    rows = range(len(groups))
    return [i for i in rows if groups[i] not in chosen], [i for i in rows if groups[i] in chosen]
# %% q7 mistake: the majority of the test set
def majority_accuracy(y_train, y_test):
    return np.unique(y_test, return_counts=True)[1].max() / len(y_test)
# %% q7 mistake: accuracy on the training set
def majority_accuracy(y_train, y_test):
    return np.unique(y_train, return_counts=True)[1].max() / len(y_train)
# %% q7 mistake: labels below zero
def majority_accuracy(y_train, y_test):
    return np.mean(np.asarray(y_test) == np.bincount(y_train).argmax())
# %% q7 right: DummyClassifier
from sklearn.dummy import DummyClassifier

def majority_accuracy(y_train, y_test):
    model = DummyClassifier(strategy="most_frequent").fit(np.zeros((len(y_train), 1)), y_train)
    return model.score(np.zeros((len(y_test), 1)), y_test)
# %% q7 right: the statistics module
import statistics

def majority_accuracy(y_train, y_test):
    most = statistics.mode(list(y_train))
    return sum(label == most for label in y_test) / len(y_test)
# %% q8 mistake: plain accuracy
def balanced_accuracy(y_true, y_pred):
    return np.mean(y_true == y_pred)
# %% q8 mistake: precision
def balanced_accuracy(y_true, y_pred):
    return np.mean([np.mean(y_true[y_pred == c] == c) if (y_pred == c).any() else 0
                    for c in np.unique(y_true)])
# %% q8 mistake: classes of both
def balanced_accuracy(y_true, y_pred):
    classes = np.union1d(y_true, y_pred)
    return sum(np.mean(y_pred[y_true == c] == c) for c in np.unique(y_true)) / len(classes)
# %% q8 right: a confusion table
def balanced_accuracy(y_true, y_pred):
    table = pd.crosstab(np.asarray(y_true), np.asarray(y_pred))
    recalls = [table.loc[c, c] / table.loc[c].sum() if c in table.columns else 0.0
               for c in table.index]
    return sum(recalls) / len(recalls)
# %% q8 right: weights
def balanced_accuracy(y_true, y_pred):
    counts = np.bincount(y_true)
    present = (counts > 0).sum()
    return float(((y_true == y_pred) / counts[y_true]).sum() / present)
# %% q9 mistake: the vectoriser sees the test texts
def predict_from_text(train_texts, y_train, test_texts):
    vectorizer = TfidfVectorizer().fit(list(train_texts) + list(test_texts))
    model = LinearSVC(random_state=0).fit(vectorizer.transform(train_texts), y_train)
    return model.predict(vectorizer.transform(test_texts))
# %% q9 mistake: the vectoriser sees the test texts, and the classifier has no seed
from sklearn.linear_model import SGDClassifier

def predict_from_text(train_texts, y_train, test_texts):
    X = TfidfVectorizer().fit_transform([*train_texts, *test_texts])
    n = len(train_texts)
    return SGDClassifier().fit(X[:n], y_train).predict(X[n:])
# %% q9 mistake: labels in another order
def predict_from_text(train_texts, y_train, test_texts):
    model = make_pipeline(TfidfVectorizer(), LinearSVC(random_state=0))
    return model.fit(list(train_texts), y_train[::-1]).predict(list(test_texts))
# %% q9 mistake: predicts the training texts
def predict_from_text(train_texts, y_train, test_texts):
    model = make_pipeline(TfidfVectorizer(), LinearSVC(random_state=0))
    return model.fit(list(train_texts), y_train).predict(list(train_texts))
# %% q9 right: characters
def predict_from_text(train_texts, y_train, test_texts):
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    model = LinearSVC(C=0.5).fit(vectorizer.fit_transform(train_texts), y_train)
    return model.predict(vectorizer.transform(test_texts))
# %% q9 right: logistic regression
from sklearn.linear_model import LogisticRegression

def predict_from_text(train_texts, y_train, test_texts):
    vectorizer = TfidfVectorizer(lowercase=True)
    X = vectorizer.fit_transform(train_texts)
    return LogisticRegression(C=10, max_iter=1000).fit(X, y_train).predict(
        vectorizer.transform(test_texts))
# %% q9 right: stochastic gradient descent without a seed
from sklearn.linear_model import SGDClassifier

def predict_from_text(train_texts, y_train, test_texts):
    model = make_pipeline(TfidfVectorizer(), SGDClassifier())
    return model.fit(train_texts, y_train).predict(test_texts)
# %% q9 right: the hinge loss without a seed
def predict_from_text(train_texts, y_train, test_texts):
    model = make_pipeline(TfidfVectorizer(), LinearSVC(loss="hinge"))
    return model.fit(train_texts, y_train).predict(test_texts)
# %% q9 right: the dual problem without a seed
def predict_from_text(train_texts, y_train, test_texts):
    model = make_pipeline(TfidfVectorizer(), LinearSVC(dual=True))
    return model.fit(train_texts, y_train).predict(test_texts)
# %% q10 mistake: unscaled features
def predict_from_features(X_train, y_train, X_test, n_neighbors):
    return KNeighborsClassifier(n_neighbors).fit(X_train, y_train).predict(X_test)
# %% q10 mistake: test rows by their own statistics
def predict_from_features(X_train, y_train, X_test, n_neighbors):
    model = KNeighborsClassifier(n_neighbors)
    model.fit(StandardScaler().fit_transform(X_train), y_train)
    return model.predict(StandardScaler().fit_transform(X_test))
# %% q10 mistake: always five neighbours
def predict_from_features(X_train, y_train, X_test, n_neighbors):
    model = make_pipeline(StandardScaler(), KNeighborsClassifier(min(5, len(X_train))))
    return model.fit(X_train, y_train).predict(X_test)
# %% q10 right: by hand
def predict_from_features(X_train, y_train, X_test, n_neighbors):
    mean, scale = X_train.mean(axis=0), X_train.std(axis=0)
    scale[scale == 0] = 1
    model = KNeighborsClassifier(n_neighbors).fit((X_train - mean) / scale, y_train)
    return model.predict((X_test - mean) / scale)
# %% q10 right: distances and votes
def predict_from_features(X_train, y_train, X_test, n_neighbors):
    scaler = StandardScaler().fit(X_train)
    A, B = scaler.transform(X_train), scaler.transform(X_test)
    distance = ((B[:, None] - A[None]) ** 2).sum(axis=2)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :n_neighbors]
    return np.array([np.bincount(np.asarray(y_train)[row]).argmax() for row in nearest])
# %% q11 mistake: unpaired
def paired_interval(right_a, right_b):
    a, b = np.asarray(right_a, float), np.asarray(right_b, float)
    middle = a.mean() - b.mean()
    half = 1.96 * np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a))
    return middle, middle - half, middle + half
# %% q11 mistake: without the square root of n
def paired_interval(right_a, right_b):
    d = np.asarray(right_a, float) - np.asarray(right_b, float)
    return d.mean(), d.mean() - 1.96 * d.std(), d.mean() + 1.96 * d.std()
# %% q11 mistake: lower end first
def paired_interval(right_a, right_b):
    d = np.asarray(right_a, float) - np.asarray(right_b, float)
    half = 1.96 * d.std() / np.sqrt(len(d))
    return d.mean() - half, d.mean(), d.mean() + half
# %% q11 right: scipy
from scipy import stats

def paired_interval(right_a, right_b):
    d = np.subtract(right_a, right_b, dtype=float)
    return np.array([d.mean(), *(d.mean() + np.array([-1, 1]) * 1.96 * stats.sem(d))])
# %% q11 right: the population's deviation
def paired_interval(right_a, right_b):
    a = [int(x) for x in right_a]
    b = [int(x) for x in right_b]
    n = len(a)
    d = [i - j for i, j in zip(a, b)]
    mean = sum(d) / n
    error = (sum((x - mean) ** 2 for x in d) / n / n) ** 0.5
    return mean, mean - 1.96 * error, mean + 1.96 * error
# %% q13 mistake: compares with one half
def leaks(procedure, n, n_classes, random_state):
    rng = np.random.default_rng(random_state)
    X, y = rng.normal(size=(n, 20)), rng.integers(0, n_classes, n)
    return procedure(X, y) < 0.5
found_leaks = [leaks(trains_and_tests_on_all, 300, 3, 0), leaks(holds_out_half, 300, 3, 0)]
# %% q13 mistake: any gain over chance
def leaks(procedure, n, n_classes, random_state):
    return True
found_leaks = [leaks(trains_and_tests_on_all, 300, 3, 0), leaks(holds_out_half, 300, 3, 0)]
# %% q13 mistake: the result is typed in
def leaks(procedure, n, n_classes, random_state):
    return None
found_leaks = [True, False]
# %% q13 mistake: two standard errors
def leaks(procedure, n, n_classes, random_state):
    rng = np.random.default_rng(random_state)
    chance = 1 / n_classes
    bound = chance + 2 * np.sqrt(chance * (1 - chance) / n)
    return bool(procedure(rng.normal(size=(n, 20)), rng.integers(0, n_classes, n)) > bound)
found_leaks = [leaks(trains_and_tests_on_all, 300, 3, 0), leaks(holds_out_half, 300, 3, 0)]
# %% q13 right: the old generator of names
def leaks(procedure, n, n_classes, random_state):
    rng = np.random.default_rng(random_state)
    X = rng.standard_normal((n, 20))
    y = rng.choice(n_classes, n)
    p = 1 / n_classes
    bound = p + 4 * (p * (1 - p) / n) ** 0.5
    return procedure(X, y) > bound
found_leaks = [leaks(trains_and_tests_on_all, 300, 3, 0), leaks(holds_out_half, 300, 3, 0)]
# %% q13 right: in two steps
def leaks(procedure, n, n_classes, random_state):
    rng = np.random.default_rng(random_state)
    X = rng.normal(0, 1, (n, 20))
    accuracy = procedure(X, rng.integers(n_classes, size=n))
    return accuracy - 1 / n_classes > 4 * np.sqrt((1 - 1 / n_classes) / n_classes / n)
found_leaks = (leaks(trains_and_tests_on_all, 300, 3, 0), leaks(holds_out_half, 300, 3, 0))
