"""Text to probe a model with where an adapter brings none of its own: several languages, code, data, dialogue.

Written for lorareg. It stands for nothing in particular; an adapter's own samples always go first.
"""

from __future__ import annotations

PROBE_TEXTS = (
    "The harbour was quiet before sunrise. Two boats came in with their lamps still lit, and the men on the quay "
    "counted the crates without a word. By the time the market opened, the price of herring had fallen by a third, "
    "and nobody could say exactly why.",
    "To install the program, unpack the archive and run the script in its top folder. It asks where to put the files "
    "and writes a log there. If a step fails, the log names it; correct the cause and run the script again, since it "
    "goes on from the step that failed.",
    "Water boils at a lower temperature on a mountain because the pressure of the air is lower there. At 3000 metres "
    "it boils at about 90 degrees Celsius, so an egg takes longer to cook, although the water looks just as lively.",
    "Der Zug nach Leipzig hat heute vierzig Minuten Verspätung. Wer umsteigen muss, sollte am Schalter nach einer "
    "anderen Verbindung fragen; die Fahrkarte gilt bis Mitternacht auch für langsamere Züge.",
    "La bibliothèque ferme à dix-huit heures, mais on peut rendre les livres toute la nuit dans la boîte devant la "
    "porte. Chaque lecteur emprunte jusqu'à huit ouvrages pour trois semaines, et renouvelle son prêt par téléphone.",
    "El agua de la fuente viene de la sierra y llega al pueblo por un canal antiguo. En verano baja poca, y los "
    "vecinos se turnan para regar los huertos antes de que salga el sol.",
    "A reunião foi adiada para quinta-feira porque metade da equipe estava viajando. Cada um deve enviar o seu "
    "relatório até a véspera, com os números do mês e uma proposta para o próximo.",
    "De dijk is in drie jaar tijd anderhalve meter hoger gemaakt. Fietsers mogen er weer over, maar met zware wagens "
    "moet men voorlopig omrijden, omdat de grond nog zakt.",
    "Zima przyszła w tym roku wcześnie. Już w listopadzie zamarzło jezioro, a dzieci z całej wsi ślizgały się po "
    "lodzie, dopóki nie zawołano ich na kolację.",
    "Поезд отправляется с третьего пути через пять минут. Просим пассажиров занять свои места, а провожающих выйти "
    "из вагонов; следующая остановка будет только утром.",
    "昨日から降り続いた雨は、昼すぎにようやく上がった。川の水はまだ高いが、橋は通れるようになったので、"
    "子どもたちは傘を閉じて学校から歩いて帰った。",
    "图书馆的新楼下个月开放。一层是阅览室，二层放着旧报纸和地图，读者可以坐在窗边，一边看书一边看外面的湖。",
    "Kütüphane bu hafta onarım yüzünden kapalı. Kitaplarınızı girişteki kutuya bırakabilirsiniz; gecikme cezası "
    "alınmayacak ve süre kendiliğinden uzatılacak.",
    'def merge(left, right):\n    """Merge two sorted lists."""\n    merged = []\n    while left and right:\n'
    "        source = left if left[0] <= right[0] else right\n        merged.append(source.pop(0))\n"
    "    return merged + left + right\n\n\nassert merge([1, 4], [2, 3, 9]) == [1, 2, 3, 4, 9]\n",
    "#include <stdio.h>\n\nint main(int argc, char **argv)\n{\n    for (int i = 1; i < argc; i++)\n"
    '        printf("%d: %s\\n", i, argv[i]);\n    return argc > 1 ? 0 : 1;\n}\n',
    "SELECT customer.name, COUNT(*) AS orders, SUM(amount) AS total\nFROM purchase JOIN customer USING (customer_id)\n"
    "WHERE placed_at >= '2024-01-01'\nGROUP BY customer.name\nHAVING COUNT(*) > 3\nORDER BY total DESC;\n",
    "function debounce(action, delay) {\n  let timer;\n  return (...values) => {\n    clearTimeout(timer);\n"
    "    timer = setTimeout(() => action(...values), delay);\n  };\n}\n",
    '{"order": 1187, "customer": {"name": "A. Berg", "city": "Umeå"}, "items": [{"sku": "K-204", "count": 3, '
    '"price": 12.5}, {"sku": "L-019", "count": 1, "price": 80.0}], "paid": true, "note": null}',
    "Question: A shop sells pens at 3 for 2 euros. How much do 12 pens cost?\nAnswer: 12 pens are 4 groups of 3, and "
    "each group costs 2 euros, so they cost 8 euros.\n\nQuestion: What is the capital of Kenya?\nAnswer: Nairobi.",
    "User: My plant has yellow leaves. What should I do?\nAssistant: Check the soil first. If it is wet a finger "
    "deep, water less often; if it is dry, water more. If neither is the case, it may want light or a larger pot.",
    "Section 4. The tenant shall give notice in writing no later than three months before the end of the term. "
    "Notice given by electronic mail is deemed received on the next working day, unless the landlord shows otherwise.",
    "Patients in the treated group (n = 212) reported less pain after six weeks than those in the control group "
    "(difference 1.4 points of ten, 95% confidence interval 0.9 to 1.9), with no difference in side effects.",
)
