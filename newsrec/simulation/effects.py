"""The effects of a world of tastes, each of which ``simulate --without`` switches off."""

EFFECTS = {
    "interests": "users have one to six interests; without it, one",
    "drift": "interests and their weights change from week to week",
    "appeal": "some news attracts all users, as the title shows in part",
    "freshness": "older news is clicked less",
    "position": "news lower in the list that was shown is clicked less",
    "duplicates": "near-duplicates of earlier news, which users who read the original avoid",
    "new_topics": "some subcategories have no news before the test week",
    "abstracts": "abstracts say more about the news than titles do",
}
