# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Ragged, missing and labelled: parts of speech
#
# Sentences have different lengths, words get lost, and somebody who knows grammar has labelled some of them. The data
# are English web text in which each word has one of 17 tags: noun, verb, punctuation and so on. A hidden Markov model
# takes tags as states and words as what they emit. We fit it with all labels, with few, with a dictionary in place of
# labels, and with none.

# %%
import os

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from sklearn.metrics import v_measure_score

import pyrohmm
from pyrohmm import data, models, nn

torch.manual_seed(0)
SMOKE = "PYROHMM_SMOKE" in os.environ  # a short run, for the tests
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=pyrohmm.checks.state_colours(8))  # for the colour-blind too

# %% [markdown]
# ## Data
#
# The loader turns words into symbols. A word seen once in training stands for all that are yet to come, so such words
# become classes by how they are written and how they end: a new word in `<lower-ing>` is likely a verb.

# %%
tagged = data.load_ud_english_ewt()
tags, num_words = tagged.tags, len(tagged.words)
print(tagged.train)
print(num_words, "symbols, such as", tagged.words[40:400:60], tagged.words[-3:])

# %% [markdown]
# `Sequences` pads to the longest sentence. Most are far shorter, so we sort by length: a minibatch is as long as its
# longest sentence, and little of it is padding.


# %%
def by_length(part):
    return part[part.lengths.argsort(stable=True)].as_whole()


train, valid, test = (by_length(part) for part in (tagged.train, tagged.valid, tagged.test))
padded = sum(batch.x.numel() for batch in train.batches(200))
print(f"words in the padded tensor {train.num_observed / train.x.numel():.0%}, in minibatches", end=" ")
print(f"{train.num_observed / padded:.0%}")

figure, axes = plt.subplots(figsize=(8, 2.2))
axes.hist(train.lengths.numpy(), bins=range(1, 81), color="0.5")
axes.set(xlabel="words in a sentence", ylabel="sentences")
plt.show()

# %% [markdown]
# ## All labels: counting
#
# With every tag known there is nothing to infer, and fitting is counting: how often each tag follows each other, and
# how often it emits each word. `assignment="labels"` does that, in one step. A Dirichlet prior keeps what was not
# counted from being impossible: as if each word had been seen 0.02 times more with each tag.

# %%
K = len(tags)


def build(num_words, **settings):
    return models.HMM(
        nn.CategoricalEmission(K, num_words, prior=dist.Dirichlet(torch.full((num_words,), 1.02))),
        nn.Initial(K, prior=dist.Dirichlet(torch.full((K,), 1.1))),
        nn.Transition(K, prior=dist.Dirichlet(torch.full((K,), 1.1)), sticky=0.0),
        **settings,
    )


def decode(model, part):
    """The most probable path of each sentence (N, T), -1 past its length."""
    states = torch.full(part.x.shape, -1)
    for rows in torch.arange(len(part)).split(200):
        batch = part[rows].trim()
        with torch.no_grad():
            states[rows, : batch.num_steps] = model.posterior(batch).viterbi().states
    return states


def accuracy(model, part):
    return ((decode(model, part) == part.labels) & part.valid).sum().item() / part.num_observed


supervised = build(num_words)
pyrohmm.fit_em(supervised, train, steps=1, assignment="labels", batch_size=200, progress=False)
all_labels = {"valid": accuracy(supervised, valid), "test": accuracy(supervised, test)}
print("tags found:", {name: f"{value:.1%}" for name, value in all_labels.items()})

# %% [markdown]
# How much of that is owed to the chain? Without it each word gets the tag that it has most often. And how much to the
# classes of rare words? The same with one symbol for all of them.

# %%
with torch.no_grad():
    frequency = train.labels[train.valid].bincount(minlength=K) + 1.0
    alone = (supervised.emission.logits + frequency.log().unsqueeze(-1)).argmax(0)
no_chain = ((alone[valid.x] == valid.labels) & valid.valid).sum().item() / valid.num_observed

plain = data.load_ud_english_ewt(unknown="one")
one_symbol = build(len(plain.words))
pyrohmm.fit_em(one_symbol, by_length(plain.train), steps=1, assignment="labels", batch_size=200, progress=False)
no_classes = accuracy(one_symbol, by_length(plain.valid))
print(f"without the chain {no_chain:.1%}, without classes {no_classes:.1%}, with both {all_labels['valid']:.1%}")

# %% [markdown]
# The transitions are a sketch of grammar. After a determiner comes a noun or an adjective, after a particle ("to") a
# verb.

# %%
pyrohmm.checks.plot_transitions(supervised, state_names=tags)
plt.show()

# %% [markdown]
# Words that may be two things are told apart by their neighbours. `encode` takes sentences of your own.

# %%
sentences = [["They", "can", "fish", "."], ["The", "can", "of", "fish", "blorfed", "."]]
own = tagged.encode(sentences)
for sentence, states in zip(sentences, decode(supervised, own), strict=True):
    print(" ".join(f"{word}/{tags[state]}" for word, state in zip(sentence, states, strict=False)))

# %% [markdown]
# ## Missing words
#
# Say that every tenth word is illegible. `mask` is True where a word was observed; the steps stay in the chain, and
# emit nothing. Their tags come from their neighbours alone. The law of the word itself is the emission, averaged over
# the tags that are possible there.

# %%
hidden = (torch.rand(valid.x.shape, generator=torch.Generator().manual_seed(1)) < 0.1) & valid.valid
holes = data.Sequences(valid.x, valid.lengths, labels=valid.labels, mask=~hidden)
found = decode(supervised, holes) == valid.labels
by_context = found[hidden].double().mean().item()
guess = (valid.labels[hidden] == frequency.argmax()).double().mean().item()
print(f"tags of missing words: {by_context:.1%}; to say {tags[frequency.argmax()]} always: {guess:.1%}")

row = int((hidden[:, 2:-2].any(-1) & (valid.lengths > 7)).nonzero()[0])
one = holes[row].trim()
with torch.no_grad():
    law = supervised.posterior(one).marginals[0] @ supervised.emission.logits.softmax(-1)
print(" ".join(tagged.words[i] if seen else "____" for i, seen in zip(one.x[0], one.mask[0], strict=True)))
for place in (~one.mask[0]).nonzero().flatten():
    print("  ", [tagged.words[i] for i in law[place].topk(8).indices], "in truth", tagged.words[valid.x[row, place]])

# %% [markdown]
# ## Few labels
#
# Now a hundred sentences have tags, and 6000 have none: `labels` is -1 where a tag is unknown. With `use_labels=True`
# the model sums over the unknown tags and holds on to the known ones, also when it decodes: it would find every tag
# that it was told. So it is set to False wherever we measure. First the hundred alone, by counting; then EM on all of
# them, from there.

# %%
num_labelled, num_sentences = (10, 50) if SMOKE else (100, 6000)
order = torch.randperm(len(tagged.train))
mixed = tagged.train[order[:num_sentences]]
few = by_length(mixed[:num_labelled])
labels = mixed.labels.clone()
labels[num_labelled:] = -1
mixed = by_length(data.Sequences(mixed.x, mixed.lengths, labels=labels).trim())

counted = build(num_words)
pyrohmm.fit_em(counted, few, steps=1, assignment="labels", progress=False)
few_labels = accuracy(counted, valid)
print(f"{num_labelled} sentences, {few.num_observed} words with tags: {few_labels:.1%}")


# %%
def continue_with_em(model, steps):
    """Accuracy on held-out sentences after each step of EM on labelled and unlabelled ones."""
    model.load_state_dict(model.state_dict() | dict(counted.named_parameters()))  # the start; priors stay
    curve = [few_labels]
    for _ in range(steps):
        model.use_labels = True
        pyrohmm.fit_em(model, mixed, steps=1, batch_size=200, progress=False)
        model.use_labels = False  # the labels of `valid` are for us alone
        curve.append(accuracy(model, valid))
    return curve


steps = 2 if SMOKE else 8
free = continue_with_em(build(num_words), steps)
print([f"{value:.1%}" for value in free])

# %% [markdown]
# The first step helps, and then it goes downhill, though the likelihood rises: 6000 sentences have their own idea of
# what seventeen states are good for, and the labels of a hundred do not outvote them (B. Merialdo, "Tagging English
# text with a probabilistic model", 1994). So let the labels speak for what they know. The sequence of tags is learned
# well from few sentences: these parameters are held, by `requires_grad_(False)`. And what a labelled word can be
# is a prior with the weight of a hundred times its count; the words that were never labelled are left to EM.

# %%
held = build(num_words)
held.initial.requires_grad_(False)
held.transition.requires_grad_(False)
counts = torch.zeros(K, num_words)
counts.index_put_((few.labels[few.valid], few.x[few.valid]), torch.ones(()), accumulate=True)
held.emission.prior += 100 * counts
guided = continue_with_em(held, steps)
print([f"{value:.1%}" for value in guided])

figure, axes = plt.subplots(figsize=(8, 2.5))
axes.plot(free, marker="o", label="all parameters learned")
axes.plot(guided, marker="o", label="transitions held, labels as a prior")
axes.set(xlabel="step of EM", ylabel="accuracy", title=f"{num_labelled} labelled sentences, {num_sentences} in all")
axes.legend()
plt.show()

# %% [markdown]
# ## A dictionary
#
# Perhaps no sentence is tagged, but a dictionary says which tags a word can have. That is a label known in part:
# `allowed` (N, T, K) is True for the states that are possible at a step. Our dictionary has, for each word, the tags of
# at least a twentieth of its uses. EM has to find out which of them it is.

# %%
uses = torch.zeros(K, num_words)
uses.index_put_((train.labels[train.valid], train.x[train.valid]), torch.ones(()), accumulate=True)
dictionary = (uses / uses.sum(0) >= 0.05) | (uses.sum(0) == 0)  # a word without an entry may be anything
print(f"{dictionary.double().sum(0).mean():.2f} tags a word")

untagged = by_length(tagged.train[order[: 50 if SMOKE else 4000]]).trim()
untagged = data.Sequences(untagged.x, untagged.lengths, allowed=dictionary.T[untagged.x])
looked_up = build(num_words)
pyrohmm.fit_em(looked_up, untagged, steps=2 if SMOKE else 8, batch_size=200, progress=False)
by_dictionary = accuracy(
    looked_up, data.Sequences(valid.x, valid.lengths, labels=valid.labels, allowed=dictionary.T[valid.x])
)
print(f"no tagged sentence, but a dictionary: {by_dictionary:.1%}")

# %% [markdown]
# ## No labels
#
# And with nothing but words? The states have no names then. Two measures need none: **many-to-one** gives each state
# the tag that it meets most often; the **V-measure** is the harmonic mean of how much the states say of the tags and
# the tags of the states, 0 for nothing and 1 for all. Rare words only blur what a state is at the start, so words seen
# fewer than twenty times are classes here. `noise` makes the states differ at the start.

# %%
frequent = data.load_ud_english_ewt(min_count=20)
words = by_length(frequent.train[order[: 50 if SMOKE else 6000]])
unsupervised = models.HMM(
    nn.CategoricalEmission(K, len(frequent.words), noise=0.5, generator=torch.Generator().manual_seed(0)),
    transition=nn.Transition(K, sticky=0.0, generator=torch.Generator().manual_seed(0)),
)
history = pyrohmm.fit_em(unsupervised, words, steps=2 if SMOKE else 60, batch_size=500, seed=0, progress=False)
states = decode(unsupervised, words)
together = models.overlap(states, words.labels, K, K)  # (states, tags)
many_to_one = (together.max(1).values.sum() / together.sum()).item()
v_measure = v_measure_score(words.labels[words.valid], states[words.valid])
share = words.labels[words.valid].bincount().max().item() / words.num_observed
print(f"many-to-one {many_to_one:.1%} (one state alone: {share:.1%}), V-measure {v_measure:.2f}")

# %% [markdown]
# A row for each state, sorted by the tag that it meets most: its three most probable words, and what part of the words
# that it got have which tag.

# %%
rows = together.max(1).indices.argsort(stable=True)
figure, axes = plt.subplots(figsize=(8, 4.5))
axes.imshow((together / together.sum(1, keepdim=True))[rows], cmap="Greys", vmin=0, vmax=1, aspect="auto")
axes.set_xticks(range(K), tags, rotation=60)
names = [
    ", ".join(frequent.words[i] for i in unsupervised.emission.logits[row].topk(3).indices.tolist()) for row in rows
]
axes.set_yticks(range(K), names)
axes.set(title="states that were found, by their words, and the tags of these words")
plt.show()

# %% [markdown]
# Half of the words are in a state whose tag is theirs. The rest is grouped by something else that helps to predict
# the next word, and for the likelihood that is just as good.
#
# ## What was recovered

# %%
if not SMOKE:
    assert all_labels["valid"] > 0.91
    assert all_labels["test"] > 0.91
    assert all_labels["valid"] > no_chain + 0.02
    assert all_labels["valid"] > no_classes + 0.015
    assert by_context > guess + 0.2
    assert max(free) > few_labels + 0.02
    assert free[-1] < max(free) - 0.05
    assert guided[-1] > few_labels + 0.05
    assert by_dictionary > 0.88
    assert many_to_one > 0.42
    assert v_measure > 0.3
