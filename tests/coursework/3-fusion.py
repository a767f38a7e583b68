# %% q1 mistake: the sum
def mean_fusion(blocks, projections):
    return sum(block @ matrix for block, matrix in zip(blocks, projections))
# %% q1 mistake: always two modalities
def mean_fusion(blocks, projections):
    return sum(block @ matrix for block, matrix in zip(blocks, projections)) / 2
# %% q1 mistake: every block by the first matrix
def mean_fusion(blocks, projections):
    width = projections[0].shape[0]
    return np.mean([block[:, :width] @ projections[0][: block.shape[1]] for block in blocks], axis=0)
# %% q1 right: one large matrix
def mean_fusion(blocks, projections):
    return np.hstack(blocks) @ np.vstack(projections) / len(blocks)
# %% q1 right: einsum
def mean_fusion(blocks, projections):
    total = 0
    for block, matrix in zip(blocks, projections):
        total = total + np.einsum("nd,dk->nk", block, matrix)
    return total / len(projections)
# %% q2 mistake: rows of any length
def product_fusion(blocks, projections):
    return np.prod([block @ matrix for block, matrix in zip(blocks, projections)], axis=0)
# %% q2 mistake: one length for all rows
def product_fusion(blocks, projections):
    product = np.prod([block @ matrix for block, matrix in zip(blocks, projections)], axis=0)
    return product / np.linalg.norm(product)
# %% q2 mistake: zero rows become NaN
def product_fusion(blocks, projections):
    product = np.prod([block @ matrix for block, matrix in zip(blocks, projections)], axis=0)
    return product / np.linalg.norm(product, axis=1, keepdims=True)
# %% q2 right: scikit-learn
def product_fusion(blocks, projections):
    from sklearn.preprocessing import normalize
    product = 1.0
    for block, matrix in zip(blocks, projections):
        product = product * (block @ matrix)
    return normalize(product)
# %% q2 right: row by row
def product_fusion(blocks, projections):
    rows = []
    for parts in zip(*(b @ p for b, p in zip(blocks, projections))):
        row = np.multiply.reduce(parts)
        rows.append(row / (np.sqrt((row**2).sum()) or 1.0))
    return np.array(rows)
# %% q3 mistake: without the root of d
def attention_weights(query, keys, present):
    scores = np.where(present, keys @ query, -np.inf)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
# %% q3 mistake: overflows
def attention_weights(query, keys, present):
    weights = np.exp(keys @ query / np.sqrt(len(query))) * present
    return weights / weights.sum()
# %% q3 mistake: absent regions only set to zero afterwards
def attention_weights(query, keys, present):
    scores = keys @ query / np.sqrt(len(query))
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() * present
# %% q3 mistake: the score of an absent region is zero
def attention_weights(query, keys, present):
    scores = np.where(present, keys @ query / np.sqrt(len(query)), 0)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
# %% q3 right: scipy
def attention_weights(query, keys, present):
    from scipy.special import softmax
    weights = np.zeros(len(keys))
    weights[present] = softmax(keys[present] @ query / len(query) ** 0.5)
    return weights
# %% q3 right: logarithms
def attention_weights(query, keys, present):
    scores = [float(k @ query) / len(query) ** 0.5 if p else -1e300 for k, p in zip(keys, present)]
    total = np.logaddexp.reduce(scores)
    return [float(np.exp(s - total)) for s in scores]
# %% q4 mistake: softmax over the wrong axis
def cross_attention(queries, keys, values):
    scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(queries.shape[-1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ values
# %% q4 mistake: softmax over all pictures
def cross_attention(queries, keys, values):
    scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(queries.shape[-1])
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ values
# %% q4 mistake: scaled by the number of regions
def cross_attention(queries, keys, values):
    scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(keys.shape[1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ values
# %% q4 right: einsum and scipy
def cross_attention(queries, keys, values):
    from scipy.special import softmax
    weights = softmax(np.einsum("btd,brd->btr", queries, keys) / queries.shape[-1] ** 0.5, axis=-1)
    return np.einsum("btr,bre->bte", weights, values)
# %% q4 right: by the function of one query
def cross_attention(queries, keys, values):
    everywhere = np.ones(keys.shape[1], dtype=bool)
    return np.array([[attention_weights(q, k, everywhere) @ v for q in qs]
                     for qs, k, v in zip(queries, keys, values)])
# %% q5 mistake: swapped modalities
def gated_fusion(x_v, x_t, W, b):
    gate = 1 / (1 + np.exp(-(np.hstack([x_v, x_t]) @ W + b)))
    return gate * x_t + (1 - gate) * x_v
# %% q5 mistake: a gate without the sigmoid
def gated_fusion(x_v, x_t, W, b):
    gate = np.clip(np.hstack([x_v, x_t]) @ W + b, 0, 1)
    return gate * x_v + (1 - gate) * x_t
# %% q5 mistake: text before picture in the gate
def gated_fusion(x_v, x_t, W, b):
    gate = 1 / (1 + np.exp(-(np.hstack([x_t, x_v]) @ W + b)))
    return gate * x_v + (1 - gate) * x_t
# %% q5 right: scipy
def gated_fusion(x_v, x_t, W, b):
    from scipy.special import expit
    k = x_v.shape[1]
    g = expit(x_v @ W[:k] + x_t @ W[k:] + b)
    return x_t + g * (x_v - x_t)
# %% q5 right: tanh
def gated_fusion(x_v, x_t, W, b):
    u = np.concatenate([x_v, x_t], axis=1) @ W + b
    g = (1 + np.tanh(u / 2)) / 2
    return np.where(True, g * x_v + (1 - g) * x_t, 0)
# %% q6 mistake: divides by all modalities
def mean_of_present(blocks, present):
    return np.where(present[..., None], blocks, 0).mean(axis=0)
# %% q6 mistake: multiplies with the mask
def mean_of_present(blocks, present):
    total = (blocks * present[..., None]).sum(axis=0)
    return total / np.maximum(present.sum(axis=0), 1)[:, None]
# %% q6 mistake: zeros count as absent
def mean_of_present(blocks, present):
    values = np.where(present[..., None], blocks, 0)
    return values.sum(axis=0) / np.maximum((values != 0).sum(axis=0), 1)
# %% q6 right: masked arrays
def mean_of_present(blocks, present):
    hidden = ~np.broadcast_to(present[..., None], blocks.shape)
    return np.ma.masked_array(blocks, hidden).mean(axis=0).filled(0)
# %% q6 right: row by row
def mean_of_present(blocks, present):
    rows = []
    for i in range(blocks.shape[1]):
        seen = [blocks[m, i] for m in range(len(blocks)) if present[m, i]]
        rows.append(np.mean(seen, axis=0) if seen else np.zeros(blocks.shape[2]))
    return rows
# %% q7 mistake: accuracy on the training set
def accuracy(kind, how, seed):
    x_v, x_t, y = make_pairs(kind, 700, seed)
    fused = FUSIONS[how](x_v, x_t)
    return LogisticRegression(max_iter=1000).fit(fused[:100], y[:100]).score(fused[:100], y[:100])
# %% q7 mistake: trained on everything
def accuracy(kind, how, seed):
    x_v, x_t, y = make_pairs(kind, 700, seed)
    fused = FUSIONS[how](x_v, x_t)
    return LogisticRegression(max_iter=1000).fit(fused, y).score(fused[100:], y[100:])
# %% q7 mistake: the modalities come from different draws
def accuracy(kind, how, seed):
    x_v, _, y = make_pairs(kind, 700, seed)
    _, x_t, _ = make_pairs(kind, 700, seed + 1)
    fused = FUSIONS[how](x_v, x_t)
    return LogisticRegression(max_iter=1000).fit(fused[:100], y[:100]).score(fused[100:], y[100:])
# %% q7 right: train_test_split without shuffling
def accuracy(kind, how, seed):
    from sklearn.model_selection import train_test_split
    x_v, x_t, y = make_pairs(kind, 700, seed)
    X, X_test, y_train, y_test = train_test_split(FUSIONS[how](x_v, x_t), y, train_size=100, shuffle=False)
    return LogisticRegression(max_iter=1000).fit(X, y_train).score(X_test, y_test)
# %% q7 right: by the predictions
def accuracy(kind, how, seed):
    x_v, x_t, y = make_pairs(kind, 700, seed)
    train, test = np.arange(100), np.arange(100, 700)
    fuse = FUSIONS[how]
    model = LogisticRegression(max_iter=1000)
    model.fit(fuse(x_v[train], x_t[train]), y[train])
    return np.mean(model.predict(fuse(x_v[test], x_t[test])) == y[test])
# %% q8 mistake: the normal distribution
def difference(kind, how_a, how_b, seeds):
    d = np.array([accuracy(kind, how_a, s) - accuracy(kind, how_b, s) for s in seeds])
    half = 1.96 * d.std(ddof=1) / np.sqrt(len(d))
    return d.mean(), d.mean() - half, d.mean() + half
# %% q8 mistake: unpaired
def difference(kind, how_a, how_b, seeds):
    a = np.array([accuracy(kind, how_a, s) for s in seeds])
    b = np.array([accuracy(kind, how_b, s) for s in seeds])
    half = stats.t.ppf(0.975, len(a) - 1) * np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a))
    return a.mean() - b.mean(), a.mean() - b.mean() - half, a.mean() - b.mean() + half
# %% q8 mistake: the spread and not the error of the mean
def difference(kind, how_a, how_b, seeds):
    d = np.array([accuracy(kind, how_a, s) - accuracy(kind, how_b, s) for s in seeds])
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1)
    return d.mean(), d.mean() - half, d.mean() + half
# %% q8 right: scipy's interval
def difference(kind, how_a, how_b, seeds):
    d = [accuracy(kind, how_a, s) - accuracy(kind, how_b, s) for s in seeds]
    low, high = stats.t.interval(0.95, len(d) - 1, np.mean(d), stats.sem(d))
    return np.mean(d), low, high
# %% q8 right: ttest_rel
def difference(kind, how_a, how_b, seeds):
    a, b = ([accuracy(kind, how, s) for s in seeds] for how in (how_a, how_b))
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    return (float(np.subtract(a, b).mean()), *map(float, interval))
# %% q9 mistake: raw scores
def late_fusion(scores_v, scores_t, weight):
    v = scores_v / np.abs(scores_v).max()
    t = scores_t / np.abs(scores_t).max()
    return (weight * v + (1 - weight) * t).argmax(axis=1)
# %% q9 mistake: softmax over the wrong axis
def late_fusion(scores_v, scores_t, weight):
    mixed = weight * log_softmax(scores_v, axis=0) + (1 - weight) * log_softmax(scores_t, axis=0)
    return mixed.argmax(axis=1)
# %% q9 mistake: swapped modalities
def late_fusion(scores_v, scores_t, weight):
    mixed = (1 - weight) * log_softmax(scores_v, axis=1) + weight * log_softmax(scores_t, axis=1)
    return mixed.argmax(axis=1)
# %% q9 right: by hand
def late_fusion(scores_v, scores_t, weight):
    def log_p(scores):
        shifted = scores - scores.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.argmax(weight * log_p(scores_v) + (1 - weight) * log_p(scores_t), axis=1)
# %% q9 right: the constants do not matter
def late_fusion(scores_v, scores_t, weight):
    return [int(np.argmax(weight * v + (1 - weight) * t)) for v, t in zip(scores_v, scores_t)]
# %% q10 mistake: leakage through near-duplicates
def fold_accuracies(X, y, groups, n_folds):
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=100))
    return cross_val_score(model, X, y, cv=StratifiedKFold(n_folds, shuffle=True, random_state=0))
# %% q10 mistake: accuracy on the training set
def fold_accuracies(X, y, groups, n_folds):
    scores = []
    for train, _ in StratifiedGroupKFold(n_folds).split(X, y, groups):
        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1))
        scores.append(model.fit(X[train], y[train]).score(X[train], y[train]))
    return scores
# %% q10 mistake: unscaled features
def fold_accuracies(X, y, groups, n_folds):
    scores = []
    for train, test in StratifiedGroupKFold(n_folds).split(X, y, groups):
        model = RidgeClassifier(alpha=100).fit(X[train], y[train])
        scores.append(model.score(X[test], y[test]))
    return scores
# %% q10 mistake: the scaler sees all rows
def fold_accuracies(X, y, groups, n_folds):
    X, scores = StandardScaler().fit_transform(X), []
    for train, test in StratifiedGroupKFold(n_folds).split(X, y, groups):
        model = RidgeClassifier(alpha=100).fit(X[train], y[train])
        scores.append(model.score(X[test], y[test]))
    return scores
# %% q10 mistake: another alpha
def fold_accuracies(X, y, groups, n_folds):
    scores = []
    for train, test in StratifiedGroupKFold(n_folds).split(X, y, groups):
        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1))
        scores.append(model.fit(X[train], y[train]).score(X[test], y[test]))
    return scores
# %% q10 right: cross_val_score
def fold_accuracies(X, y, groups, n_folds):
    from sklearn.model_selection import cross_val_score
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=100))
    return list(cross_val_score(model, X, y, groups=groups, cv=StratifiedGroupKFold(n_folds)))
# %% q10 right: GroupKFold and a generator
def fold_accuracies(X, y, groups, n_folds):
    from sklearn.model_selection import GroupKFold
    for train, test in GroupKFold(n_folds).split(X, y, groups):
        scaler = StandardScaler().fit(X[train])
        model = RidgeClassifier(alpha=100).fit(scaler.transform(X[train]), y[train])
        yield float(np.mean(model.predict(scaler.transform(X[test])) == y[test]))
# %% q10 right: folds in another order
def fold_accuracies(X, y, groups, n_folds):
    from sklearn.model_selection import cross_val_score
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=100))
    folds = StratifiedGroupKFold(n_folds, shuffle=True)
    return cross_val_score(model, X, y, groups=groups, cv=folds).tolist()
# %% q11 mistake: swapped modalities
gains = {"image": 0.746, "text": 0.66, "concat": 0.80}
# %% q11 mistake: the rows of one modality are in another order
gains = {name: float(np.mean(fold_accuracies(X, emoji.target, emoji.groups, 5)))
         for name, X in {"image": image[::-1], "text": text[::-1]}.items()} | {"concat": 0.9}
# %% q11 right: one after the other
gains = {}
for name, X in (("image", image), ("text", text), ("concat", np.concatenate([image, text], axis=1))):
    gains[name] = sum(fold_accuracies(X, emoji.target, emoji.groups, 5)) / 5
# %% q11 right: text first
gains = dict(
    text=np.mean(list(fold_accuracies(text, emoji.target, emoji.groups, 5))),
    image=np.mean(list(fold_accuracies(image, emoji.target, emoji.groups, 5))),
    concat=np.mean(list(fold_accuracies(np.column_stack([text, image]), emoji.target, emoji.groups, 5))),
)
# %% q13 mistake: a linear kernel
def kernel_accuracy(kind, seed, n_train):
    x_v, x_t, y = make_pairs(kind, n_train + 600, seed)
    X = np.hstack([x_v, x_t])
    return SVC(kernel="linear").fit(X[:n_train], y[:n_train]).score(X[n_train:], y[n_train:])
learning = {n: kernel_accuracy("interacting", 0, n) for n in (20, 200, 2000)}
# %% q13 mistake: accuracy on the training set
def kernel_accuracy(kind, seed, n_train):
    x_v, x_t, y = make_pairs(kind, n_train + 600, seed)
    X = np.hstack([x_v, x_t])
    model = SVC(kernel="poly", degree=2, gamma=1, coef0=1).fit(X[:n_train], y[:n_train])
    return model.score(X[:n_train], y[:n_train])
learning = {n: kernel_accuracy("interacting", 0, n) for n in (20, 200, 2000)}
# %% q13 right: a kernel written out
def kernel_accuracy(kind, seed, n_train):
    x_v, x_t, y = make_pairs(kind, n_train + 600, seed)
    X = np.concatenate([x_v, x_t], axis=1)
    model = SVC(kernel=lambda A, B: (A @ B.T + 1) ** 2).fit(X[:n_train], y[:n_train])
    return float(np.mean(model.predict(X[n_train:]) == y[n_train:]))
learning = {n: kernel_accuracy("interacting", 0, n) for n in (20, 200, 2000)}
# %% q13 right: the features written out
def kernel_accuracy(kind, seed, n_train):
    from sklearn.preprocessing import PolynomialFeatures
    x_v, x_t, y = make_pairs(kind, n_train + 600, seed)
    Z = PolynomialFeatures(2).fit_transform(np.hstack([x_v, x_t]))
    model = SVC(kernel="linear").fit(Z[:n_train], y[:n_train])
    return model.score(Z[n_train:], y[n_train:])
learning = {n: kernel_accuracy("interacting", 0, n) for n in (20, 200, 2000)}
